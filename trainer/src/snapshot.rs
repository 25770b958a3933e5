//! The last good state in host memory: each rank copies what it owns, and a rewind copies it back.

use tch::{Device, Tensor};

use crate::guard::History;
use crate::state::{RunState, UnitState};

/// A copy of a run's state on this rank: masters and optimizer state, from which the rest follows.
/// It takes as much host memory as they do.
#[derive(Debug)]
pub struct Snapshot {
    step: u64,
    num_tokens: u64,
    flops: u128,
    history: History,
    /// For each unit its masters, then its states.
    buffers: Vec<Vec<Tensor>>,
}

impl Snapshot {
    /// A copy of `state`.
    pub fn take(state: &RunState) -> Self {
        let empty_like =
            |buffer: &Tensor| Tensor::empty(buffer.size(), (buffer.kind(), Device::Cpu));
        let unit = |unit: &UnitState| owned_buffers(unit).map(empty_like).collect();
        let buffers = state.units.iter().map(unit).collect();
        let history = History::default();
        let mut snapshot = Self { step: 0, num_tokens: 0, flops: 0, history, buffers };
        snapshot.update(state);
        snapshot
    }

    /// Copies `state`, of the same run, over what was copied before.
    pub fn update(&mut self, state: &RunState) {
        (self.step, self.num_tokens, self.flops) = (state.step, state.num_tokens, state.flops);
        self.history = state.history.clone();
        for (unit, copies) in state.units.iter().zip(&mut self.buffers) {
            owned_buffers(unit).zip(copies).for_each(|(buffer, copy)| copy.copy_(buffer));
        }
    }

    /// The last step of the copied state.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Host memory that the copies take.
    pub fn bytes(&self) -> u64 {
        let bytes = |copy: &Tensor| (copy.numel() * copy.kind().elt_size_in_bytes()) as u64;
        self.buffers.iter().flatten().map(bytes).sum()
    }

    /// Copies it back: masters, optimizer state, counters, and of the working copies this rank's
    /// part. Nothing may be on its way between ranks.
    pub fn restore(&self, state: &mut RunState) {
        (state.step, state.num_tokens, state.flops) = (self.step, self.num_tokens, self.flops);
        state.history = self.history.clone();
        for (unit, copies) in state.units.iter().zip(&self.buffers) {
            let restore = |(buffer, copy): (&Tensor, &Tensor)| buffer.shallow_clone().copy_(copy);
            owned_buffers(unit).zip(copies).for_each(restore);
        }
        state.round_masters();
    }
}

/// What of a unit cannot be computed from the rest.
fn owned_buffers(unit: &UnitState) -> impl Iterator<Item = &Tensor> {
    std::iter::once(&unit.masters).chain(unit.state_tensors())
}
