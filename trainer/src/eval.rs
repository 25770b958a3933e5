//! The mean loss over held-out tokens.

use std::collections::BTreeMap;
use std::ops::Range;

use grove_data::Validation;

use crate::error::Error;
use crate::pass::{Documents, Layers, Tokens, Traffic, loss_sum};
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
    batches: (&Validation, u64),
    traffic: &mut Traffic<'_>,
    stop: &StopRequest,
) -> Result<Evaluation, Error> {
    let numbers = sums(layers, batches, traffic, stop)?;
    Ok(numbers.map_or(Evaluation::Stopped, |numbers| Evaluation::Loss(mean_loss(&numbers))))
}

/// [`evaluate`] on each of several sources, at most `num_batches` batches of each: the mean over
/// all of their tokens, and, of more sources than one, the means of each by name.
///
/// # Errors
/// Those of [`evaluate`].
///
/// # Collectives
/// Those of [`evaluate`] for each source.
pub fn evaluate_sources(
    layers: Layers<'_>,
    (sources, num_batches): (&[(String, Validation)], u64),
    traffic: &mut Traffic<'_>,
    stop: &StopRequest,
) -> Result<(Evaluation, BTreeMap<String, f64>), Error> {
    let (mut all, mut losses) = (StepNumbers::zero(), BTreeMap::new());
    for (name, validation) in sources {
        let Some(numbers) = sums(layers, (validation, num_batches), traffic, stop)? else {
            return Ok((Evaluation::Stopped, BTreeMap::new()));
        };
        all.loss.add(numbers.loss.value());
        all.num_tokens += numbers.num_tokens;
        if sources.len() > 1 {
            losses.insert(name.clone(), mean_loss(&numbers));
        }
    }
    Ok((Evaluation::Loss(mean_loss(&all)), losses))
}

fn mean_loss(numbers: &StepNumbers) -> f64 {
    numbers.loss.value() / numbers.num_tokens as f64
}

/// The summed loss and the tokens over all ranks; `None` if one was asked to stop.
fn sums(
    layers: Layers<'_>,
    (validation, num_batches): (&Validation, u64),
    traffic: &mut Traffic<'_>,
    stop: &StopRequest,
) -> Result<Option<StepNumbers>, Error> {
    let world = traffic.sharding.world();
    let available = validation.num_batches();
    let count = if num_batches == 0 { available } else { num_batches.min(available) };
    let mut mine = StepNumbers::zero();
    for round in rounds(count, world.degree() as u64) {
        if agree_to_stop(world, stop)? {
            return Ok(None);
        }
        // A rank without a batch in the last round repeats another's, as working copies may have
        // to be gathered by all ranks together.
        let index = round.start + world.rank() as u64;
        let batch = validation.batch(index.min(round.end - 1))?;
        let tokens = Tokens::of_batch(layers.compute, &batch, Documents::Apart);
        let loss = loss_sum(layers, &tokens, traffic)?.double_value(&[]);
        if index < round.end {
            mine.loss.add(loss);
            mine.num_tokens += tokens.num_targets();
        }
    }
    Ok(Some(mine.over_ranks(world)?))
}

/// Batches `0..count` in rounds of at most one a rank.
fn rounds(count: u64, degree: u64) -> impl Iterator<Item = Range<u64>> {
    (0..count).step_by(degree as usize).map(move |first| first..(first + degree).min(count))
}
