//! The mean loss over held-out tokens.

use std::ops::Range;

use grove_data::Validation;
use grove_parallel::Collective;

use crate::error::Error;
use crate::model::compute::Compute;
use crate::model::decoder::Decoder;
use crate::pass::{Tokens, loss_sum};
use crate::signals::StopRequest;
use crate::state::UnitState;
use crate::step::sum_over_ranks;

/// What an evaluation found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Evaluation {
    /// Mean loss in nats over the held-out tokens.
    Loss(f64),
    /// A rank was asked to stop meanwhile.
    Stopped,
}

/// The mean loss over the first `num_batches` validation batches (0: all of them), which the
/// ranks share out.
///
/// The sum runs over ranks within a round of one batch a rank, then over rounds, in f64.
///
/// # Errors
/// If data cannot be read or a collective fails.
///
/// # Collectives
/// One all-reduce for each round of one batch a rank.
pub fn evaluate(
    (model, compute): (&Decoder, &Compute),
    units: &[UnitState],
    (validation, num_batches): (&Validation, u64),
    collective: &dyn Collective,
    stop: &StopRequest,
) -> Result<Evaluation, Error> {
    let available = validation.num_batches();
    let count = if num_batches == 0 { available } else { num_batches.min(available) };
    let (mut loss, mut num_tokens) = (0.0, 0.0);
    for round in rounds(count, collective.degree() as u64) {
        let index = round.start + collective.rank() as u64;
        let mut sums = [0.0, 0.0, f64::from(u8::from(stop.is_asked()))];
        if index < round.end {
            let batch = validation.batch(index)?;
            let tokens = Tokens::new(compute, &batch.tokens, batch.batch_size);
            sums[0] = loss_sum(model, compute, units, &tokens).double_value(&[]);
            sums[1] = tokens.targets.numel() as f64;
        }
        let [round_loss, round_tokens, stops] = sum_over_ranks(collective, sums)?;
        if stops > 0.0 {
            return Ok(Evaluation::Stopped);
        }
        loss += round_loss;
        num_tokens += round_tokens;
    }
    Ok(Evaluation::Loss(loss / num_tokens))
}

/// Batches `0..count` in rounds of at most one a rank.
fn rounds(count: u64, degree: u64) -> impl Iterator<Item = Range<u64>> {
    (0..count).step_by(degree as usize).map(move |first| first..(first + degree).min(count))
}
