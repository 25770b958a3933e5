//! Labels drawn from a model's own predictions, by numbers that are drawn elsewhere.

use tch::{Kind, Tensor};

use super::compute::{Compute, per_element};
use crate::kernel::cross_entropy::IGNORED_TARGET;
use crate::kernel::element::Element;
use crate::kernel::view;

/// A label for each row from `softmax(logits)` by inversion: the first token up to which the
/// probabilities add up to more than the row's uniform number. Rows whose target is ignored stay so.
/// A row's label depends on nothing but the row.
///
/// # Shapes
/// - `logits`: `[n, V]`; `targets`: `[n]` i64; `uniforms`: `[n]` f64 in `[0, 1)`; returns `[n]` i64
pub(super) fn labels(
    compute: &Compute,
    logits: &Tensor,
    targets: &Tensor,
    uniforms: &Tensor,
) -> Tensor {
    if compute.has_kernels() {
        let vocab_size = logits.size()[1] as usize;
        let mut drawn: Vec<i64> = view::slice::<i64>(targets).to_vec();
        let uniforms = view::slice::<f64>(uniforms);
        per_element!(compute, E => {
            let logits = view::slice::<E>(logits);
            compute.pool.for_each_chunk_mut(&mut drawn, 1, |row, label| {
                if label[0] != IGNORED_TARGET {
                    let logits = &logits[row * vocab_size..(row + 1) * vocab_size];
                    label[0] = label_of_row(logits, uniforms[row]) as i64;
                }
            });
        });
        return Tensor::from_slice(&drawn);
    }
    let sums = logits.to_kind(Kind::Double).softmax(-1, Kind::Double).cumsum(-1, Kind::Double);
    let threshold = uniforms.unsqueeze(-1) * sums.narrow(1, sums.size()[1] - 1, 1);
    let below = sums.le_tensor(&threshold).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
    let drawn = below.clamp_max(logits.size()[1] - 1);
    targets.where_self(&targets.eq(IGNORED_TARGET), &drawn)
}

/// The label of one row; sums in f64, in the order of tokens.
fn label_of_row<E: Element>(logits: &[E], uniform: f64) -> usize {
    let max = logits.iter().map(|logit| logit.to_f32()).fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> =
        logits.iter().map(|logit| f64::from(logit.to_f32() - max).exp()).collect();
    let threshold = uniform * weights.iter().sum::<f64>();
    let (mut sum, mut last) = (0.0, 0);
    for (token, &weight) in weights.iter().enumerate() {
        sum += weight;
        if sum > threshold {
            return token;
        }
        if weight > 0.0 {
            last = token;
        }
    }
    // Only if the threshold was rounded up to the whole sum.
    last
}

#[cfg(test)]
mod tests;
