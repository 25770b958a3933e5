//! The mean loss over held-out tokens.

use std::ops::Range;

use grove_data::Validation;

use crate::error::Error;
use crate::pass::{Layers, Tokens, Traffic, loss_sum};
use crate::signals::StopRequest;
use crate::step_numbers::{StepNumbers, agree_to_stop};

/// What an evaluation found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Evaluation {
    /// Mean loss in nats over the held-out tokens.
    Loss(f64),
    /// A rank was asked to stop meanwhile.
    Stopped,
}

/// The mean loss over the first `num_batches` validation batches (0: all of them), which the
/// ranks share out. The sum does not depend on who computed what.
///
/// # Errors
/// If data cannot be read or a collective fails.
///
/// # Collectives
/// One all-reduce for each round of one batch a rank, one at the end, and those of a forward.
pub fn evaluate(
    layers: Layers<'_>,
    (validation, num_batches): (&Validation, u64),
    traffic: &mut Traffic<'_>,
    stop: &StopRequest,
) -> Result<Evaluation, Error> {
    let world = traffic.sharding.world();
    let available = validation.num_batches();
    let count = if num_batches == 0 { available } else { num_batches.min(available) };
    let mut mine = StepNumbers::zero();
    for round in rounds(count, world.degree() as u64) {
        if agree_to_stop(world, stop)? {
            return Ok(Evaluation::Stopped);
        }
        // A rank without a batch in the last round repeats another's, as working copies may have
        // to be gathered by all ranks together.
        let index = round.start + world.rank() as u64;
        let batch = validation.batch(index.min(round.end - 1))?;
        let tokens = Tokens::new(layers.compute, &batch.tokens, batch.batch_size);
        let loss = loss_sum(layers, &tokens, traffic)?.double_value(&[]);
        if index < round.end {
            mine.loss.add(loss);
            mine.num_tokens += tokens.targets.numel() as u64;
        }
    }
    let all = mine.over_ranks(world)?;
    Ok(Evaluation::Loss(all.loss.value() / all.num_tokens as f64))
}

/// Batches `0..count` in rounds of at most one a rank.
fn rounds(count: u64, degree: u64) -> impl Iterator<Item = Range<u64>> {
    (0..count).step_by(degree as usize).map(move |first| first..(first + degree).min(count))
}
