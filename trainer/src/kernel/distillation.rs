//! Cross-entropy mixed with the divergence from a teacher's softened predictions, over a chunk of
//! logits; the gradient replaces the logits in place.
//!
//! Legend: n rows (tokens) of the chunk, V vocab. Softmaxes run in f32, the losses in f64.

use super::block::{Blocks, block, rows_per_block};
use super::cross_entropy::IGNORED_TARGET;
use super::dispatch::{Body, Level};
use super::element::{Element, widen};
use super::exp::exp;
use super::lanes;
use super::pool::Pool;

#[cfg(test)]
mod tests;

/// How many values are added in f32 before their sum joins one in f64.
const SPAN: usize = 1024;

/// How much a teacher counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixture {
    /// The weight of the teacher, from 0 to 1; that of the targets is what is left.
    pub weight: f64,
    /// The divisor of both models' logits in the divergence; above 0.
    pub temperature: f64,
}

/// The losses of some tokens, each summed without its weight.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MixedSums {
    /// Sum of `-ln softmax(student)[target]` over the tokens that count, in nats.
    pub loss: f64,
    /// Sum of `T^2 KL(softmax(teacher / T) || softmax(student / T))` over them, in nats.
    pub divergence: f64,
}

/// The summed losses of a chunk; overwrites the student's logits by the gradient of
/// `(1 - weight) loss + weight divergence`, which is
/// `(1 - weight) (softmax(s) - onehot) + weight T (softmax(s / T) - softmax(t / T))`, 0 in rows
/// whose target is [`IGNORED_TARGET`]. Qin et al. 2022, arXiv:2105.13880, eq. 2 and 3.
///
/// # Shapes
/// - `student`, `teacher`: `[n, V]`
/// - `targets`: `[n]`, token ids or [`IGNORED_TARGET`]
///
/// # Panics
/// If the lengths do not fit or a target is no token.
pub fn mixed_loss_and_grad<E: Element>(
    pool: &Pool,
    (student, teacher): (&mut [E], &[E]),
    targets: &[i64],
    vocab_size: usize,
    mixture: Mixture,
) -> MixedSums {
    assert_eq!(student.len(), targets.len() * vocab_size, "one row of logits a target");
    assert_eq!(teacher.len(), student.len(), "as many logits of the teacher");
    let rows = rows_per_block(vocab_size);
    let mut sums = vec![MixedSums::default(); targets.len()];
    let sum_blocks = Blocks::new(&mut sums, rows);
    let students = Blocks::new(student, rows * vocab_size);
    let mut scratch = vec![Scratch::new(vocab_size); pool.num_threads()];
    let level = Level::detect();
    pool.for_each_with(&mut scratch, students.num_blocks(), |scratch, index| {
        level.run(MixedBlock {
            student: students.take(index),
            teacher: block(teacher, index, rows * vocab_size),
            targets: block(targets, index, rows),
            sums: sum_blocks.take(index),
            mixture,
            scratch,
        });
    });
    sums.iter().fold(MixedSums::default(), |total, sums| MixedSums {
        loss: total.loss + sums.loss,
        divergence: total.divergence + sums.divergence,
    })
}

/// What a thread keeps of a row, `[V]` each.
#[derive(Debug, Clone)]
struct Scratch {
    /// Logits of one model, less their maximum, over the temperature.
    shifted: Vec<f32>,
    /// Exponentials of the student's logits.
    plain: Vec<f32>,
    /// Those at the temperature.
    soft: Vec<f32>,
    /// Those of the teacher.
    teacher: Vec<f32>,
    /// What the divergence is the sum of.
    terms: Vec<f32>,
}

impl Scratch {
    fn new(vocab_size: usize) -> Self {
        let row = || vec![0.0; vocab_size];
        Self { shifted: row(), plain: row(), soft: row(), teacher: row(), terms: row() }
    }
}

/// A block of rows of [`mixed_loss_and_grad`].
struct MixedBlock<'a, E> {
    student: &'a mut [E],
    teacher: &'a [E],
    targets: &'a [i64],
    sums: &'a mut [MixedSums],
    mixture: Mixture,
    scratch: &'a mut Scratch,
}

impl<E: Element> Body for MixedBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, level: Level) {
        let Self { student, teacher, targets, sums, mixture, scratch } = self;
        let vocab_size = scratch.plain.len();
        let rows = student.chunks_exact_mut(vocab_size).zip(teacher.chunks_exact(vocab_size));
        for (((student, teacher), target), sums) in rows.zip(targets).zip(sums) {
            if *target == IGNORED_TARGET {
                student.fill(E::default());
                continue;
            }
            *sums = mix_row(level, (student, teacher), *target as usize, mixture, scratch);
        }
    }
}

/// The losses of one row, whose logits become the gradient.
#[inline(always)]
fn mix_row<E: Element>(
    level: Level,
    (student, teacher): (&mut [E], &[E]),
    target: usize,
    mixture: Mixture,
    scratch: &mut Scratch,
) -> MixedSums {
    let Scratch { shifted, plain, soft, teacher: taught, terms } = scratch;
    let (weight, temperature) = (mixture.weight as f32, mixture.temperature as f32);
    let cool = 1.0 / temperature;
    widen(teacher, shifted);
    let max = lanes::max(level, shifted);
    for (shifted, taught) in shifted.iter_mut().zip(taught.iter_mut()) {
        *shifted = (*shifted - max) * cool;
        *taught = exp(*shifted);
    }
    terms.copy_from_slice(shifted);
    let taught_sum = sum(level, taught);
    widen(student, shifted);
    let max = lanes::max(level, shifted);
    let target_logit = f64::from(shifted[target] - max);
    for i in 0..shifted.len() {
        let logit = shifted[i] - max;
        plain[i] = exp(logit);
        soft[i] = exp(logit * cool);
        // Zero times the distance of two logits that are minus infinity is nothing.
        let distance = terms[i] - logit * cool;
        terms[i] = if taught[i] > 0.0 { taught[i] * distance } else { 0.0 };
    }
    let (plain_sum, soft_sum) = (sum(level, plain), sum(level, soft));
    let mean_distance = sum(level, terms) / taught_sum;
    let divergence = mean_distance - taught_sum.ln() + soft_sum.ln();
    let plain_factor = (1.0 - weight) / plain_sum as f32;
    let soft_factor = weight * temperature / soft_sum as f32;
    let taught_factor = weight * temperature / taught_sum as f32;
    let onehot = plain[target] * plain_factor - (1.0 - weight);
    for i in 0..shifted.len() {
        let distilled = soft[i] * soft_factor - taught[i] * taught_factor;
        shifted[i] = plain[i] * plain_factor + distilled;
    }
    shifted[target] = onehot + soft[target] * soft_factor - taught[target] * taught_factor;
    for (gradient, wide) in student.iter_mut().zip(shifted.iter()) {
        *gradient = E::from_f32(*wide);
    }
    MixedSums {
        loss: plain_sum.ln() - target_logit,
        divergence: mixture.temperature * mixture.temperature * divergence,
    }
}

/// The sum of a row in f64 over spans in f32.
#[inline(always)]
fn sum(level: Level, values: &[f32]) -> f64 {
    let mut total = 0.0;
    for span in values.chunks(SPAN) {
        total += f64::from(lanes::sum(level, span));
    }
    total
}
