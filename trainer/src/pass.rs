//! One micro-batch through the model and back: the list of layer calls that training is.

mod graphs;
mod tokens;

use tch::{Kind, Tensor};

pub use graphs::{Graphs, micro_step};
pub use tokens::{Documents, Tokens};

use crate::clock::Clock;
use crate::gradients::{Gradient, GradientSums, Round};
use crate::metrics::Phase;
use crate::model::block::Recompute;
use crate::model::compute::Compute;
use crate::model::decoder::Decoder;
use crate::model::embedding;
use crate::model::head::{HeadGrads, HeadWeights};
use crate::model::ramp::masked;
use crate::model::segments::Segments;
use crate::model::views::{Accumulate, Weights};
use crate::residents::Residents;
use crate::sharding::Sharding;
use crate::state::UnitState;

/// A model, and what it runs on.
#[derive(Clone, Copy, Debug)]
pub struct Layers<'a> {
    /// The layers.
    pub model: &'a Decoder,
    /// Device, dtypes and threads.
    pub compute: &'a Compute,
    /// Where the parameters are.
    pub units: &'a [UnitState],
}

/// What moves between ranks while layers compute.
pub struct Traffic<'a> {
    /// Who holds what.
    pub sharding: Sharding<'a>,
    /// Working copies on their way.
    pub residents: Residents,
    /// Gradients on their way.
    pub sums: GradientSums,
    /// The most bytes that updates of parameters which are taken whole had on their way at one time.
    pub exchange_bytes: u64,
    /// Micro-steps as a GPU was asked for them before, where they are recorded.
    pub graphs: Option<Graphs>,
}

impl<'a> Traffic<'a> {
    /// Nothing on its way yet; gathers will start `ahead` visits before their use.
    pub fn new(sharding: Sharding<'a>, units: &[UnitState], ahead: usize) -> Self {
        let residents = Residents::new(units, ahead);
        Self {
            sharding,
            residents,
            sums: GradientSums::new(units),
            exchange_bytes: 0,
            graphs: None,
        }
    }

    /// Starts to bring the other ranks' parts of all whole working copies, as after an update.
    ///
    /// # Errors
    /// If a gather cannot be started.
    ///
    /// # Collectives
    /// That of [`Residents::refresh`] for each unit.
    pub fn refresh_all(&mut self, units: &[UnitState]) -> Result<(), grove_parallel::Error> {
        (0..units.len()).try_for_each(|index| self.residents.refresh(units, &self.sharding, index))
    }
}

/// A walk over the units in the order in which layers need them, gathering ahead.
struct Walk<'w, 'a> {
    layers: Layers<'w>,
    traffic: &'w mut Traffic<'a>,
    clock: &'w mut Clock,
    /// Unit indices, one for each use.
    visits: Vec<usize>,
    position: usize,
}

impl<'w, 'a> Walk<'w, 'a> {
    fn new(
        layers: Layers<'w>,
        traffic: &'w mut Traffic<'a>,
        clock: &'w mut Clock,
        visits: Vec<usize>,
    ) -> Self {
        Self { layers, traffic, clock, visits, position: 0 }
    }

    /// The whole working copies of the next unit, for use in `phase`.
    fn next(&mut self, phase: Phase) -> Result<Tensor, grove_parallel::Error> {
        let index = self.visits[self.position];
        let Traffic { residents, sharding, .. } = &mut *self.traffic;
        let last = (self.position + residents.ahead()).min(self.visits.len() - 1);
        for &index in &self.visits[self.position..=last] {
            residents.prefetch(self.layers.units, sharding, index)?;
        }
        self.position += 1;
        let name = &self.layers.units[index].spec.name;
        if residents.is_awaited(index) {
            self.clock.enter_unit(Phase::Gather, name);
        }
        let whole = residents.whole(self.layers.units, index)?;
        self.clock.enter_unit(phase, name);
        Ok(whole)
    }

    /// Ends the use of a unit: its memory may serve another.
    fn release(&mut self, index: usize) {
        self.traffic.residents.release(index);
    }

    /// Where a unit's gradient goes, for use in `phase`.
    fn gradient(
        &mut self,
        unit: &UnitState,
        phase: Phase,
        round: Round,
    ) -> Result<Gradient, grove_parallel::Error> {
        let name = &unit.spec.name;
        let Traffic { sharding, sums, .. } = &mut *self.traffic;
        if sums.is_full() {
            self.clock.enter_unit(Phase::Reduce, name);
        }
        let gradient = sums.gradient(self.layers.compute, sharding, unit, round)?;
        self.clock.enter_unit(phase, name);
        Ok(gradient)
    }

    fn reduce(
        &mut self,
        unit: &UnitState,
        gradient: Gradient,
        round: Round,
    ) -> Result<(), grove_parallel::Error> {
        let Traffic { sharding, sums, .. } = &mut *self.traffic;
        sums.add(self.layers.compute, sharding, unit, gradient, round)
    }
}

/// The uses of units up to and with the head: embedding, blocks, head and, tied, embedding again.
fn forward_visits(model: &Decoder) -> Vec<usize> {
    let num_units = model.units().len();
    let mut visits: Vec<usize> = (0..num_units).collect();
    if model.output_unit() != num_units - 1 {
        visits.push(model.output_unit());
    }
    visits
}

/// [`micro_step`] without a graph.
fn queue_micro_step(
    layers: Layers<'_>,
    tokens: &Tokens,
    round: Round,
    traffic: &mut Traffic<'_>,
    clock: &mut Clock,
) -> Result<Tensor, grove_parallel::Error> {
    let Layers { model, compute, units } = layers;
    let segments = tokens.segments.as_deref();
    let pass = model.pass(compute, tokens.shape(), segments);
    let num_blocks = units.len() - 2;
    let mut visits = forward_visits(model);
    visits.extend((1..=num_blocks).rev());
    let mut walk = Walk::new(layers, traffic, clock, visits);

    let flat = walk.next(Phase::Forward)?;
    let mut x = model.embed(compute, &weights(&units[0], &flat), (&tokens.inputs, segments));
    walk.release(0);
    let mut saved = Vec::with_capacity(num_blocks);
    for (index, unit) in units.iter().enumerate().skip(1).take(num_blocks) {
        let flat = walk.next(Phase::Forward)?;
        let pass = model.through(&pass, index - 1);
        let (y, kept) = model.block.forward(&pass, &weights(unit, &flat), x, model.recompute);
        saved.push(kept);
        x = y;
        walk.release(index);
    }
    walk.clock.note_activations(|| saved.iter().map(|kept| kept.bytes()).sum());

    let (loss_sum, mut dx, output) = head(&mut walk, &x, tokens, round)?;
    drop(x);

    for (index, unit) in units.iter().enumerate().skip(1).take(num_blocks).rev() {
        let flat = walk.next(Phase::Backward)?;
        let gradient = walk.gradient(unit, Phase::Backward, round)?;
        let grads = gradient.views(compute, unit);
        let kept = saved.pop().expect("one for each block");
        let pass = model.through(&pass, index - 1);
        dx = model.block.backward(&pass, (&weights(unit, &flat), &grads), kept, dx);
        walk.release(index);
        walk.reduce(unit, gradient, round)?;
    }
    backward_embedding(&mut walk, (tokens, &dx), output, round)?;
    Ok(loss_sum)
}

/// The head forward and backward. Returns loss, the gradient of `x` and, where the output matrix is
/// the token embedding, the gradient of the embedding so far.
fn head(
    walk: &mut Walk<'_, '_>,
    x: &Tensor,
    tokens: &Tokens,
    round: Round,
) -> Result<(Tensor, Tensor, Option<Gradient>), grove_parallel::Error> {
    let Layers { model, compute, units } = walk.layers;
    let (last, output) = (units.len() - 1, model.output_unit());
    let norm_flat = walk.next(Phase::Head)?;
    let output_flat = match output == last {
        true => norm_flat.shallow_clone(),
        false => walk.next(Phase::Head)?,
    };
    let head = HeadWeights {
        norm: weights(&units[last], &norm_flat),
        output: weights(&units[output], &output_flat),
    };
    let norm_gradient = walk.gradient(&units[last], Phase::Head, round)?;
    let output_gradient = match output == last {
        true => None,
        false => Some(walk.gradient(&units[output], Phase::Head, round)?),
    };
    let grads = HeadGrads {
        norm: norm_gradient.views(compute, &units[last]),
        output: output_gradient.as_ref().unwrap_or(&norm_gradient).views(compute, &units[output]),
    };
    let (loss_sum, dx) = model.head.loss_and_backward(compute, (&head, &grads), x, tokens.labels());
    walk.release(last);
    walk.release(output);
    walk.reduce(&units[last], norm_gradient, round)?;
    Ok((loss_sum, dx, output_gradient))
}

/// The embedding's gradient: of the tokens that were looked up and, where the head has put its
/// share into `gradient` already, of both.
fn backward_embedding(
    walk: &mut Walk<'_, '_>,
    (tokens, dx): (&Tokens, &Tensor),
    gradient: Option<Gradient>,
    round: Round,
) -> Result<(), grove_parallel::Error> {
    let Layers { model, compute, units } = walk.layers;
    walk.clock.enter_unit(Phase::Backward, &units[0].spec.name);
    let token_grads = if gradient.is_some() { Accumulate::Add } else { Accumulate::Overwrite };
    let gradient = match gradient {
        Some(gradient) => gradient,
        None => walk.gradient(&units[0], Phase::Backward, round)?,
    };
    let grads = gradient.views(compute, &units[0]);
    let positions = model.positions(tokens.segments.as_deref());
    let dx = masked(dx, model.channels());
    embedding::backward(compute, &grads, token_grads, (&tokens.inputs, &dx), positions);
    walk.reduce(&units[0], gradient, round)
}

/// The summed loss of one micro-batch, forward only: a scalar f64 on the device.
///
/// # Errors
/// If a gather fails.
///
/// # Collectives
/// Where working copies are sharded: a gather for each use of a unit.
pub fn loss_sum(
    layers: Layers<'_>,
    tokens: &Tokens,
    traffic: &mut Traffic<'_>,
) -> Result<Tensor, grove_parallel::Error> {
    let Layers { model, compute, .. } = layers;
    let inputs = (&tokens.inputs, tokens.segments.as_deref());
    with_head(layers, inputs, traffic, |weights, x| {
        model.head.loss(compute, weights, &x, &tokens.targets)
    })
}

/// The logits of every position, in rows that may be cut.
///
/// # Shapes
/// - `inputs`: `[B, S]` i64; returns `[B * S, V]` in the compute dtype
///
/// # Errors
/// As [`loss_sum`].
///
/// # Collectives
/// As [`loss_sum`].
pub fn logits(
    layers: Layers<'_>,
    (inputs, segments): (&Tensor, Option<&Segments>),
    traffic: &mut Traffic<'_>,
) -> Result<Tensor, grove_parallel::Error> {
    let Layers { model, compute, .. } = layers;
    let inputs = (inputs, segments);
    with_head(layers, inputs, traffic, |weights, x| model.head.logits(compute, weights, &x))
}

/// What the output matrix is applied to, at every position.
///
/// # Shapes
/// - `inputs`: `[B, S]` i64; returns `[B * S, D]` in the compute dtype
///
/// # Errors
/// As [`loss_sum`].
///
/// # Collectives
/// As [`loss_sum`].
pub fn hidden(
    layers: Layers<'_>,
    inputs: (&Tensor, Option<&Segments>),
    traffic: &mut Traffic<'_>,
) -> Result<Tensor, grove_parallel::Error> {
    let Layers { model, compute, .. } = layers;
    with_head(layers, inputs, traffic, |weights, x| model.head.hidden(compute, weights, &x))
}

/// The logits of one position of a single sequence, f32 `[V]`.
///
/// # Shapes
/// - `inputs`: `[1, S]` i64; `position` is below `S`
///
/// # Errors
/// As [`loss_sum`].
///
/// # Collectives
/// As [`loss_sum`].
pub fn logits_at(
    layers: Layers<'_>,
    (inputs, position): (&Tensor, i64),
    traffic: &mut Traffic<'_>,
) -> Result<Tensor, grove_parallel::Error> {
    let Layers { model, compute, .. } = layers;
    with_head(layers, (inputs, None), traffic, |weights, x| {
        let x = x.narrow(0, position, 1).contiguous();
        model.head.logits(compute, weights, &x).view(-1).to_kind(Kind::Float)
    })
}

/// A forward over all blocks, and what `finish` makes of the residual stream `[B * S, D]`.
fn with_head<T>(
    layers: Layers<'_>,
    (inputs, segments): (&Tensor, Option<&Segments>),
    traffic: &mut Traffic<'_>,
    finish: impl FnOnce(&HeadWeights<'_>, Tensor) -> T,
) -> Result<T, grove_parallel::Error> {
    let Layers { model, compute, units } = layers;
    let shape = inputs.size2().expect("inputs are [B, S]");
    let pass = model.pass(compute, shape, segments);
    let mut clock = Clock::new();
    let mut walk = Walk::new(layers, traffic, &mut clock, forward_visits(model));
    let flat = walk.next(Phase::Forward)?;
    let mut x = model.embed(compute, &weights(&units[0], &flat), (inputs, segments));
    walk.release(0);
    let (last, output) = (units.len() - 1, model.output_unit());
    for (index, unit) in units.iter().enumerate().take(last).skip(1) {
        let flat = walk.next(Phase::Forward)?;
        let pass = model.through(&pass, index - 1);
        x = model.block.forward(&pass, &weights(unit, &flat), x, Recompute::Block).0;
        walk.release(index);
    }
    let norm_flat = walk.next(Phase::Head)?;
    let output_flat = match output == last {
        true => norm_flat.shallow_clone(),
        false => walk.next(Phase::Head)?,
    };
    let head = HeadWeights {
        norm: weights(&units[last], &norm_flat),
        output: weights(&units[output], &output_flat),
    };
    let result = finish(&head, x);
    walk.release(last);
    walk.release(output);
    Ok(result)
}

fn weights<'a>(unit: &'a UnitState, flat: &'a Tensor) -> Weights<'a> {
    Weights { layout: &unit.layout, flat }
}
