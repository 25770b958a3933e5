//! Micro-steps as CUDA graphs: what one queues on a GPU is recorded once, and then queued again by
//! one call, for the launches of a small model take longer than their work.
//!
//! A graph reads and writes the memory that it was recorded with: tokens and the loss have buffers of
//! their own, which are copied to and from; parameters and accumulators are where they are. A
//! micro-step that is the first of its step overwrites the accumulators, others add, so there are two
//! graphs. What is not the same for every micro-step is not recorded but done as ever: rows that are
//! cut into documents, drawn labels, a teacher, masks that rise.

use tch::{Kind, Tensor};

use super::{Layers, Tokens, Traffic, queue_micro_step};
use crate::clock::Clock;
use crate::cuda::{Graph, Recorder};
use crate::gradients::Round;
use crate::metrics::Phase;
use crate::model::compute::Compute;

/// Micro-steps of a kind before it is recorded: libraries choose and load kernels when they are first
/// asked, which cannot be recorded.
const WARM_UPS: usize = 2;

/// Forward and backward of one micro-batch: its gradients join the units' accumulators once
/// `traffic.sums` is finished. Returns the summed loss over its tokens, a scalar f64 on the device.
///
/// # Errors
/// If a gather or reduction fails.
///
/// # Collectives
/// Where working copies are sharded: a gather for each use of a unit. For each unit what
/// [`GradientSums::add`] does, in backward order.
pub fn micro_step(
    layers: Layers<'_>,
    tokens: &Tokens,
    round: Round,
    traffic: &mut Traffic<'_>,
    clock: &mut Clock,
) -> Result<Tensor, grove_parallel::Error> {
    let Some(mut graphs) = traffic.graphs.take() else {
        return queue_micro_step(layers, tokens, round, traffic, clock);
    };
    let loss = graphs.micro_step(layers, tokens, round, traffic, clock);
    traffic.graphs = Some(graphs);
    loss
}

/// The micro-steps of a run on one rank, as they were recorded.
pub struct Graphs {
    recorder: Box<dyn Record>,
    recorded: Option<Recorded>,
}

/// What records work.
trait Record {
    /// Records what `work` queues, without doing it.
    fn record(&mut self, compute: &Compute, work: &mut dyn FnMut()) -> Box<dyn Replay>;
}

/// Recorded work.
trait Replay {
    /// Queues it once more; `work` is what was recorded.
    fn replay(&self, work: &mut dyn FnMut());
}

/// What was recorded for one shape of micro-batches and one place of parameters.
struct Recorded {
    key: Key,
    /// Where graphs find tokens.
    tokens: Tokens,
    /// Where they leave the loss: a scalar f64.
    loss: Tensor,
    /// Keeps what graphs read and write where it is.
    _memory: Vec<Tensor>,
    /// Of the first micro-step of a step, and of the others.
    kinds: [MicroStep; 2],
}

#[derive(Default)]
struct MicroStep {
    warm_ups: usize,
    graph: Option<Box<dyn Replay>>,
}

/// What must be as it was for a graph to be right.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    shape: (i64, i64),
    /// Of working copies and accumulators.
    addresses: Vec<usize>,
}

impl Key {
    fn of(layers: Layers<'_>, tokens: &Tokens) -> Self {
        let addresses = memory_of(layers).iter().map(|it| it.data_ptr() as usize).collect();
        Self { shape: tokens.shape(), addresses }
    }
}

impl Graphs {
    /// None yet; `recorder` is that of the GPU on which the layers compute.
    pub fn new(recorder: Recorder) -> Self {
        Self { recorder: Box::new(recorder), recorded: None }
    }

    /// Whether a micro-step is like all others. Calls between ranks would be among what is recorded,
    /// so that there must be one rank.
    fn takes(layers: Layers<'_>, tokens: &Tokens, traffic: &Traffic<'_>) -> bool {
        let plain = tokens.segments.is_none() && tokens.draws.is_none() && tokens.lesson.is_none();
        plain && !layers.model.is_masked() && traffic.sharding.placement.degree == 1
    }

    /// [`micro_step`] with `traffic`, which must be the same each time.
    pub(super) fn micro_step(
        &mut self,
        layers: Layers<'_>,
        tokens: &Tokens,
        round: Round,
        traffic: &mut Traffic<'_>,
        clock: &mut Clock,
    ) -> Result<Tensor, grove_parallel::Error> {
        if !Self::takes(layers, tokens, traffic) {
            return queue_micro_step(layers, tokens, round, traffic, clock);
        }
        let key = Key::of(layers, tokens);
        if self.recorded.as_ref().is_none_or(|recorded| recorded.key != key) {
            // Graphs for other memory go first, as theirs may be wanted for the new ones.
            self.recorded = None;
            self.recorded = Some(Recorded::new(key, layers, tokens));
        }
        let recorded = self.recorded.as_mut().expect("it was just put there");
        let Recorded { tokens: buffers, loss, kinds, .. } = recorded;
        let kind = &mut kinds[usize::from(!round.first)];
        if kind.graph.is_none() && kind.warm_ups < WARM_UPS {
            kind.warm_ups += 1;
            return queue_micro_step(layers, tokens, round, traffic, clock);
        }
        clock.enter(Phase::Forward);
        buffers.inputs.copy_(&tokens.inputs);
        buffers.targets.copy_(&tokens.targets);
        let mut outcome = Ok(());
        let mut work = || match queue_micro_step(layers, buffers, round, traffic, clock) {
            Ok(found) => loss.copy_(&found),
            Err(error) => outcome = Err(error),
        };
        let compute = layers.compute;
        let graph = kind.graph.get_or_insert_with(|| self.recorder.record(compute, &mut work));
        graph.replay(&mut work);
        outcome?;
        Ok(loss.copy())
    }
}

impl Recorded {
    /// Nothing recorded yet.
    fn new(key: Key, layers: Layers<'_>, tokens: &Tokens) -> Self {
        let mut buffers = tokens.shallow_clone();
        buffers.inputs = tokens.inputs.copy();
        buffers.targets = tokens.targets.copy();
        let loss = Tensor::zeros([], (Kind::Double, layers.compute.device));
        Self { key, tokens: buffers, loss, _memory: memory_of(layers), kinds: Default::default() }
    }
}

/// What a micro-step on one rank reads and writes beside its tokens, and does not take itself.
fn memory_of(layers: Layers<'_>) -> Vec<Tensor> {
    let of_unit =
        |unit: &crate::state::UnitState| [&unit.working, &unit.grads].map(Tensor::shallow_clone);
    layers.units.iter().flat_map(of_unit).collect()
}

impl Record for Recorder {
    fn record(&mut self, compute: &Compute, work: &mut dyn FnMut()) -> Box<dyn Replay> {
        Box::new(Recorder::record(self, compute.fused_anywhere(), work))
    }
}

impl Replay for Graph {
    fn replay(&self, _: &mut dyn FnMut()) {
        Graph::replay(self);
    }
}

impl std::fmt::Debug for Graphs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Graphs, {}", if self.recorded.is_some() { "begun" } else { "none yet" })
    }
}

#[cfg(test)]
mod tests;
