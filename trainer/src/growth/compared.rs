//! The sequences on which a certificate compares two models.

use grove_data::Validation;
use tch::Tensor;

use super::error::Error as GrowthError;
use crate::config::Plan;
use crate::error::Error;
use crate::model::config::DecoderSpec;

/// The most tokens of a sequence, and the most sequences.
const COMPARED: (usize, usize) = (256, 4);

/// How long sequences may be, and how many there are at most, for a source and the plan of what it
/// becomes.
pub fn sizes(spec: &DecoderSpec, plan: &Plan) -> (usize, usize) {
    (COMPARED.0.min(spec.max_positions).min(plan.batch.sequence_length), COMPARED.1)
}

/// Sequences `[B, S + 1]` of held-out tokens, and where they are from.
///
/// # Errors
/// If they cannot be read, or have ids that the source does not know.
pub fn held_out(
    (windows, from): (&Validation, &str),
    spec: &DecoderSpec,
    plan: &Plan,
) -> Result<(Tensor, String), Error> {
    let (length, count) = sizes(spec, plan);
    let batch = windows.batch(0)?;
    let ids: Vec<i64> = batch.tokens.iter().map(|&id| i64::from(id)).collect();
    let rows = Tensor::from_slice(&ids).view([-1, batch.sequence_length as i64 + 1]);
    let (count, length) = (count as i64, length as i64 + 1);
    let [rows_there, length_there] = [rows.size()[0], rows.size()[1]];
    let kept = rows.narrow(0, 0, count.min(rows_there)).narrow(1, 0, length.min(length_there));
    if kept.max().int64_value(&[]) >= spec.vocab_size as i64 {
        let (from, vocab_size) = (from.to_owned(), spec.vocab_size);
        return Err(GrowthError::NewTokens { from, vocab_size }.into());
    }
    let described = format!("{} of {from}", kept.numel());
    Ok((kept, described))
}

/// Sequences `[B, S + 1]` of ids of the source, where no others are at hand.
pub fn made_up(spec: &DecoderSpec, plan: &Plan) -> (Tensor, String) {
    let (length, rows) = sizes(spec, plan);
    let count = rows * (length + 1);
    let ids = (0..count).map(|i| ((i * i * 31 + i * 17) % spec.vocab_size) as i64);
    let ids = Tensor::from_slice(&ids.collect::<Vec<_>>());
    let described = format!("{count} made up, as there is no validation data at hand");
    (ids.view([rows as i64, -1]), described)
}
