//! Softmax cross-entropy over a chunk of logits; the gradient replaces the logits in place.
//!
//! Legend: n rows (tokens) of the chunk, V vocab. The softmax runs in f32, the loss in f64.

use super::block::{Blocks, block, rows_per_block};
use super::dispatch::{Body, Level};
use super::element::{Element, widen};
use super::error::Error;
use super::exp::exp;
use super::lanes;
use super::pool::Pool;

#[cfg(test)]
mod tests;

/// A target of this value has no loss and no gradient, and is not counted; as in PyTorch.
pub const IGNORED_TARGET: i64 = -100;

/// How many logits share one maximum. Small enough for the first-level cache, and for running sums
/// in f32 not to lose anything.
const SPAN: usize = 1024;

/// What is added to the cross-entropy. All zeros, the default, add nothing and change no bit.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Terms {
    /// Factor on the squared logarithm of each row's normalizer, which keeps it near 1
    /// (Chowdhery et al. 2022, arXiv:2204.02311, section 5: 1e-4).
    pub z_loss: f64,
    /// The part of the target's probability that is spread evenly over the vocabulary (Szegedy et
    /// al. 2016, arXiv:1512.00567, section 7); below 1.
    pub label_smoothing: f64,
}

/// The loss of some tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LossSum {
    /// Sum of `-ln softmax(logits)[target]` over the counted tokens, in nats.
    pub loss: f64,
    /// How many tokens are counted: those whose target is not [`IGNORED_TARGET`].
    pub num_tokens: usize,
}

/// The summed loss of a chunk; overwrites the logits by the gradient of the *sum*, which is 0 in
/// ignored rows.
///
/// With `p = softmax(logits)`, `Z` the sum of exponentials and `e` the smoothing, a row's loss is
/// `ln Z - (1 - e) logits[target] - e mean(logits) + z_loss ln(Z)^2`, and its gradient
/// `(1 + 2 z_loss ln Z) p - (1 - e) onehot(target) - e / V`.
///
/// # Shapes
/// - `logits`: `[n, V]`
/// - `targets`: `[n]`, token ids or [`IGNORED_TARGET`]
///
/// The losses are added in the order of rows, so the sum does not depend on the pool.
///
/// # Errors
/// [`Error::Target`] for the first target that is neither; `logits` are then unchanged.
///
/// # Panics
/// If the lengths do not fit.
pub fn loss_and_grad<E: Element>(
    pool: &Pool,
    logits: &mut [E],
    targets: &[i64],
    vocab_size: usize,
    terms: Terms,
) -> Result<LossSum, Error> {
    check(logits, targets, vocab_size)?;
    let rows = rows_per_block(vocab_size);
    let mut losses = vec![0.0f64; targets.len()];
    let loss_blocks = Blocks::new(&mut losses, rows);
    let logits = Blocks::new(logits, rows * vocab_size);
    let mut scratch = vec![Scratch::default(); pool.num_threads()];
    let level = Level::detect();
    pool.for_each_with(&mut scratch, logits.num_blocks(), |scratch, index| {
        level.run(GradientBlock {
            logits: logits.take(index),
            targets: block(targets, index, rows),
            vocab_size,
            terms,
            losses: loss_blocks.take(index),
            scratch,
        });
    });
    Ok(total(&losses, targets))
}

/// The loss of [`loss_and_grad`] without [`Terms`], bit for bit, and without the gradient.
///
/// # Errors
/// [`Error::Target`] for the first target that is neither a token id nor [`IGNORED_TARGET`].
///
/// # Panics
/// If the lengths do not fit.
pub fn loss_only<E: Element>(
    pool: &Pool,
    logits: &[E],
    targets: &[i64],
    vocab_size: usize,
) -> Result<LossSum, Error> {
    check(logits, targets, vocab_size)?;
    let rows = rows_per_block(vocab_size);
    let mut losses = vec![0.0f64; targets.len()];
    let loss_blocks = Blocks::new(&mut losses, rows);
    let mut scratch = vec![Scratch::default(); pool.num_threads()];
    let level = Level::detect();
    pool.for_each_with(&mut scratch, loss_blocks.num_blocks(), |scratch, index| {
        level.run(LossBlock {
            logits: block(logits, index, rows * vocab_size),
            targets: block(targets, index, rows),
            vocab_size,
            losses: loss_blocks.take(index),
            scratch,
        });
    });
    Ok(total(&losses, targets))
}

fn check<E>(logits: &[E], targets: &[i64], vocab_size: usize) -> Result<(), Error> {
    assert!(vocab_size > 0, "there is at least one token");
    assert_eq!(logits.len(), targets.len() * vocab_size, "one row of logits a target");
    match targets.iter().position(|target| token(*target).is_some_and(|t| t >= vocab_size)) {
        None => Ok(()),
        Some(row) => {
            let (target, ignored) = (targets[row], IGNORED_TARGET);
            Err(Error::Target { row, target, vocab_size, ignored })
        }
    }
}

/// The token that `target` names, nothing if it is to be ignored. A negative id is too large a token.
#[inline(always)]
fn token(target: i64) -> Option<usize> {
    (target != IGNORED_TARGET).then(|| usize::try_from(target).unwrap_or(usize::MAX))
}

fn total(losses: &[f64], targets: &[i64]) -> LossSum {
    LossSum {
        loss: losses.iter().sum(),
        num_tokens: targets.iter().filter(|target| token(**target).is_some()).count(),
    }
}

/// What a thread keeps between the two passes over a row.
#[derive(Debug, Clone, Default)]
struct Scratch {
    /// `[V]`, the exponentials, each relative to the maximum of its span.
    exponentials: Vec<f32>,
    /// `[ceil(V / SPAN)]`, the maximum and the sum of exponentials of each span.
    spans: Vec<Span>,
}

/// A span of logits, after the first pass.
#[derive(Debug, Clone, Copy)]
struct Span {
    max: f32,
    sum: f32,
}

/// The normalizer of a row: `ln(sum(exp(logits))) = max + ln(sum)`.
struct Normalizer {
    max: f32,
    sum: f32,
}

impl Normalizer {
    fn log_sum(&self) -> f64 {
        f64::from(self.max) + f64::from(self.sum).ln()
    }

    fn loss(&self, target_logit: f32) -> f64 {
        f64::from(self.max) - f64::from(target_logit) + f64::from(self.sum).ln()
    }
}

impl Scratch {
    /// The first pass over a row: reads the logits once from memory, a span at a time, and leaves
    /// the exponentials behind.
    #[inline(always)]
    fn fill<E: Element>(&mut self, level: Level, row: &[E]) -> Normalizer {
        self.exponentials.resize(row.len(), 0.0);
        self.spans.clear();
        let mut row_max = f32::NEG_INFINITY;
        for (logits, wide) in row.chunks(SPAN).zip(self.exponentials.chunks_mut(SPAN)) {
            widen(logits, wide);
            let max = lanes::max(level, wide);
            // A span of masked logits, all minus infinity, contributes exp(-inf - 0) = 0.
            let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
            for value in wide.iter_mut() {
                *value = exp(*value - shift);
            }
            let sum = lanes::sum(level, wide);
            row_max = row_max.max(max);
            self.spans.push(Span { max, sum });
        }
        let sum = self.spans.iter().map(|span| span.sum * exp(span.max - row_max)).sum();
        Normalizer { max: row_max, sum }
    }
}

/// The sum of a row's logits, a span at a time.
#[inline(always)]
fn sum_of<E: Element>(level: Level, row: &[E], scratch: &mut Scratch) -> f64 {
    scratch.exponentials.resize(row.len(), 0.0);
    let mut sum = 0.0;
    for (logits, wide) in row.chunks(SPAN).zip(scratch.exponentials.chunks_mut(SPAN)) {
        widen(logits, wide);
        sum += f64::from(lanes::sum(level, wide));
    }
    sum
}

/// A block of rows of [`loss_and_grad`].
struct GradientBlock<'a, E> {
    logits: &'a mut [E],
    targets: &'a [i64],
    vocab_size: usize,
    terms: Terms,
    losses: &'a mut [f64],
    scratch: &'a mut Scratch,
}

impl<E: Element> Body for GradientBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, level: Level) {
        let Self { logits, targets, vocab_size, terms, losses, scratch } = self;
        let even = (terms.label_smoothing / vocab_size as f64) as f32;
        let peak = (1.0 - terms.label_smoothing) as f32;
        let rows = logits.chunks_exact_mut(vocab_size).zip(targets).zip(losses);
        for ((row, target), loss) in rows {
            let Some(target) = token(*target) else {
                row.fill(E::default());
                continue;
            };
            let target_logit = row[target].to_f32();
            let logit_sum = if even == 0.0 { 0.0 } else { sum_of(level, row, scratch) };
            let normalizer = scratch.fill(level, row);
            *loss = normalizer.loss(target_logit);
            let mut slope = 1.0f32;
            if terms != Terms::default() {
                let log_sum = normalizer.log_sum();
                let to_mean = f64::from(target_logit) - logit_sum / vocab_size as f64;
                *loss += terms.z_loss * log_sum * log_sum + terms.label_smoothing * to_mean;
                slope = (1.0 + 2.0 * terms.z_loss * log_sum) as f32;
            }
            let wide = scratch.exponentials.chunks(SPAN);
            for ((gradient, wide), span) in row.chunks_mut(SPAN).zip(wide).zip(&scratch.spans) {
                let factor = slope * (exp(span.max - normalizer.max) / normalizer.sum);
                for (gradient, wide) in gradient.iter_mut().zip(wide) {
                    *gradient = E::from_f32(wide * factor - even);
                }
            }
            let span = scratch.spans[target / SPAN];
            let factor = slope * (exp(span.max - normalizer.max) / normalizer.sum);
            row[target] = E::from_f32(scratch.exponentials[target] * factor - peak - even);
        }
    }
}

/// A block of rows of [`loss_only`].
struct LossBlock<'a, E> {
    logits: &'a [E],
    targets: &'a [i64],
    vocab_size: usize,
    losses: &'a mut [f64],
    scratch: &'a mut Scratch,
}

impl<E: Element> Body for LossBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, level: Level) {
        let Self { logits, targets, vocab_size, losses, scratch } = self;
        let rows = logits.chunks_exact(vocab_size).zip(targets).zip(losses);
        for ((row, target), loss) in rows {
            if let Some(target) = token(*target) {
                *loss = scratch.fill(level, row).loss(row[target].to_f32());
            }
        }
    }
}
