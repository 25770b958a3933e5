//! What a step has come to before its update: the one place where it waits for a GPU.

use grove_parallel::ExactSum;
use tch::Tensor;

use super::Recipe;
use crate::clock::Clock;
use crate::error::Error;
use crate::metrics::Phase;
use crate::pass::Traffic;
use crate::readback::Readback;
use crate::state::RunState;
use crate::step_numbers::{StepNumbers, Word};
use crate::update::SquaredNorm;

/// What this rank's micro-batches gave, where the device may still be at work.
pub(super) struct Passed {
    /// The summed loss of each, scalars on the device.
    pub(super) losses: Vec<Tensor>,
    /// The summed divergence of each from a teacher, in steps in which one counts.
    pub(super) divergences: Option<Vec<Tensor>>,
    /// Tokens that count.
    pub(super) num_tokens: u64,
}

/// What the host knows of a step before its update.
pub(super) struct Found {
    /// Of all ranks.
    pub(super) numbers: StepNumbers,
    /// Of this rank.
    pub(super) micro_losses: Vec<f64>,
    /// Of the summed gradient.
    pub(super) squared_norm: f64,
}

impl Passed {
    /// Brings losses and the squared norm to the host and over the ranks. Here is the one wait for
    /// a GPU within a step: when it is over, gradients are complete, and the guards decide on
    /// numbers that are the same on every rank.
    pub(super) fn found(
        self,
        recipe: &Recipe,
        state: &RunState,
        word: Word<'_>,
        traffic: &mut Traffic<'_>,
        clock: &mut Clock,
    ) -> Result<Found, Error> {
        clock.enter(Phase::Clip);
        let mut readback = Readback::new();
        let losses = readback.ask_scalars(&self.losses);
        let divergences = self.divergences.map(|scalars| readback.ask_scalars(&scalars));
        let norm = SquaredNorm::begin(&recipe.compute, &state.units, &mut readback);
        let arrived = readback.fetch(clock);
        clock.enter(Phase::Reduce);
        let micro_losses = arrived.at(&losses).to_vec();
        let mine = StepNumbers {
            loss: exact_sum(&micro_losses),
            divergence: divergences.map(|place| exact_sum(arrived.at(&place))),
            num_tokens: self.num_tokens,
            ..StepNumbers::zero()
        };
        let numbers = mine.telling(word).over_ranks(traffic.sharding.world())?;
        if numbers.num_tokens == 0 {
            return Err(Error::NoTargets { step: state.step + 1 });
        }
        clock.enter(Phase::Clip);
        let squared_norm = norm.finish(&arrived, &traffic.sharding)?;
        Ok(Found { numbers, micro_losses, squared_norm })
    }
}

/// The exact sum of numbers.
fn exact_sum(values: &[f64]) -> ExactSum {
    let mut sum = ExactSum::new();
    values.iter().for_each(|&value| sum.add(value));
    sum
}
