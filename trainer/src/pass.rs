//! One micro-batch through the model and back: the list of layer calls that training is.

use grove_parallel::{Collective, Handle, Reduction};
use tch::{Kind, Tensor};

use crate::clock::Clock;
use crate::metrics::Phase;
use crate::model::block::Recompute;
use crate::model::compute::Compute;
use crate::model::decoder::Decoder;
use crate::model::embedding;
use crate::model::head::{HeadGrads, HeadWeights};
use crate::model::views::Accumulate;
use crate::state::UnitState;

/// When the gradients of a unit are summed over ranks.
#[derive(Clone, Copy)]
pub enum Reduce<'a> {
    /// Not yet: more micro-batches will be added first.
    Later,
    /// As soon as the unit's backward has ended, behind the backward of the units before it.
    Now(&'a dyn Collective),
}

/// What a micro-batch leaves besides gradients.
#[derive(Debug)]
pub struct MicroStep {
    /// The summed loss over the micro-batch's tokens: a scalar f64 on the device.
    pub loss_sum: Tensor,
    /// The reductions that were started.
    pub reductions: Vec<Handle>,
}

/// Inputs `[B, S]` and targets `[B * S]` of a micro-batch, on the device.
#[derive(Debug)]
pub struct Tokens {
    /// `[B, S]` i64.
    pub inputs: Tensor,
    /// `[B * S]` i64: what follows each input.
    pub targets: Tensor,
}

impl Tokens {
    /// Splits rows of `S + 1` tokens.
    ///
    /// # Shapes
    /// - `rows`: `B * (S + 1)` token ids, row-major
    pub fn new(compute: &Compute, rows: &[u32], batch_size: usize) -> Self {
        let ids: Vec<i64> = rows.iter().map(|&id| i64::from(id)).collect();
        let rows = Tensor::from_slice(&ids).view([batch_size as i64, -1]);
        let length = rows.size()[1] - 1;
        let place = |first| rows.narrow(1, first, length).contiguous().to_device(compute.device);
        Self { inputs: place(0), targets: place(1).view(-1) }
    }

    /// `(B, S)`.
    pub fn shape(&self) -> (i64, i64) {
        self.inputs.size2().expect("inputs are [B, S]")
    }
}

/// Forward and backward of one micro-batch: adds its gradients to the units' accumulators.
///
/// # Errors
/// If a reduction cannot be started.
///
/// # Collectives
/// With [`Reduce::Now`]: one all-reduce for each unit, in backward order.
pub fn micro_step(
    model: &Decoder,
    compute: &Compute,
    units: &[UnitState],
    tokens: &Tokens,
    (accumulate, reduce): (Accumulate, Reduce<'_>),
    clock: &mut Clock,
) -> Result<MicroStep, grove_parallel::Error> {
    let pass = model.pass(compute, tokens.shape());
    let (embedding_unit, blocks, head_unit) = split(units);
    let mut reductions = Vec::new();

    clock.enter(Phase::Forward);
    let (weights, positions) = (embedding_unit.weights(), model.learns_positions());
    let mut x = embedding::forward(compute, &weights, &tokens.inputs, positions);
    let mut saved = Vec::with_capacity(blocks.len());
    for unit in blocks {
        let (y, kept) = model.block.forward(&pass, &unit.weights(), x, model.recompute);
        saved.push(kept);
        x = y;
    }

    clock.enter(Phase::Head);
    let weights = head_weights(model, units);
    let grads = HeadGrads {
        norm: head_unit.grads(accumulate),
        output: units[model.output_unit()].grads(accumulate),
    };
    let params = (&weights, &grads);
    let (loss_sum, mut dx) = model.head.loss_and_backward(compute, params, &x, &tokens.targets);
    drop(x);

    clock.enter(Phase::Backward);
    start(reduce, head_unit, &mut reductions)?;
    for unit in blocks.iter().rev() {
        let kept = saved.pop().expect("one for each block");
        let params = (&unit.weights(), &unit.grads(accumulate));
        dx = model.block.backward(&pass, params, kept, dx);
        start(reduce, unit, &mut reductions)?;
    }
    // Tied, the head has already put its share of the embedding's gradient there.
    let token_grads = if model.spec.tied { Accumulate::Add } else { accumulate };
    let (grads, rows) = (embedding_unit.grads(accumulate), (&tokens.inputs, &dx));
    embedding::backward(compute, &grads, token_grads, rows, model.learns_positions());
    start(reduce, embedding_unit, &mut reductions)?;
    Ok(MicroStep { loss_sum, reductions })
}

/// The summed loss of one micro-batch, forward only: a scalar f64 on the device.
pub fn loss_sum(
    model: &Decoder,
    compute: &Compute,
    units: &[UnitState],
    tokens: &Tokens,
) -> Tensor {
    let x = hidden(model, compute, units, &tokens.inputs);
    model.head.loss(compute, &head_weights(model, units), &x, &tokens.targets)
}

/// The logits of every position.
///
/// # Shapes
/// - `inputs`: `[B, S]` i64; returns `[B * S, V]` in the compute dtype
pub fn logits(model: &Decoder, compute: &Compute, units: &[UnitState], inputs: &Tensor) -> Tensor {
    let x = hidden(model, compute, units, inputs);
    model.head.logits(compute, &head_weights(model, units), &x)
}

/// The logits of one position of a single sequence, f32 `[V]`.
///
/// # Shapes
/// - `inputs`: `[1, S]` i64; `position` is below `S`
pub fn logits_at(
    model: &Decoder,
    compute: &Compute,
    units: &[UnitState],
    (inputs, position): (&Tensor, i64),
) -> Tensor {
    let x = hidden(model, compute, units, inputs).narrow(0, position, 1).contiguous();
    let logits = model.head.logits(compute, &head_weights(model, units), &x);
    logits.view(-1).to_kind(Kind::Float)
}

/// The residual stream after the last block, `[B * S, D]`.
fn hidden(model: &Decoder, compute: &Compute, units: &[UnitState], inputs: &Tensor) -> Tensor {
    let pass = model.pass(compute, inputs.size2().expect("inputs are [B, S]"));
    let (embedding_unit, blocks, _) = split(units);
    let (weights, positions) = (embedding_unit.weights(), model.learns_positions());
    let mut x = embedding::forward(compute, &weights, inputs, positions);
    for unit in blocks {
        x = model.block.forward(&pass, &unit.weights(), x, Recompute::Block).0;
    }
    x
}

fn split(units: &[UnitState]) -> (&UnitState, &[UnitState], &UnitState) {
    let [embedding, blocks @ .., head] = units else {
        unreachable!("a model has an embedding and a head")
    };
    (embedding, blocks, head)
}

fn head_weights<'a>(model: &Decoder, units: &'a [UnitState]) -> HeadWeights<'a> {
    let (_, _, head) = split(units);
    HeadWeights { norm: head.weights(), output: units[model.output_unit()].weights() }
}

fn start(
    reduce: Reduce<'_>,
    unit: &UnitState,
    reductions: &mut Vec<Handle>,
) -> Result<(), grove_parallel::Error> {
    if let Reduce::Now(collective) = reduce {
        reductions.push(collective.all_reduce(&unit.grads, Reduction::Sum, &unit.spec.name)?);
    }
    Ok(())
}
