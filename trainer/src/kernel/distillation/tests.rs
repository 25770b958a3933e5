//! Losses and gradient against f64, the two ends of the mixture, and rows that do not count.

use half::bf16;

use super::super::cross_entropy::{self, Terms};
use super::super::testing::{Tolerance, assert_close, assert_same, exact, sample};
use super::*;

const NUM_ROWS: usize = 13;
/// Below, at and above one span.
const VOCAB_SIZES: [usize; 4] = [2, 257, 1024, 2051];
/// Relative error of a loss: a few roundings in f32 of terms of up to 20.
const LOSS_TOLERANCE: f64 = 3e-6;
const MIXTURE: Mixture = Mixture { weight: 0.3, temperature: 2.0 };

fn targets(vocab_size: usize) -> Vec<i64> {
    let target = |row: usize| (row * 7919 % vocab_size) as i64;
    (0..NUM_ROWS).map(|row| if row % 5 == 4 { IGNORED_TARGET } else { target(row) }).collect()
}

fn log_softmax(row: &[f64], temperature: f64) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|logit| ((logit - max) / temperature).exp()).sum();
    row.iter().map(|logit| (logit - max) / temperature - sum.ln()).collect()
}

/// Losses and gradient by their definitions in f64.
fn reference(
    (student, teacher): (&[f64], &[f64]),
    targets: &[i64],
    vocab_size: usize,
) -> (MixedSums, Vec<f64>) {
    let Mixture { weight, temperature } = MIXTURE;
    let (mut sums, mut gradient) = (MixedSums::default(), Vec::new());
    let rows = student.chunks(vocab_size).zip(teacher.chunks(vocab_size));
    for ((student, teacher), &target) in rows.zip(targets) {
        if target == IGNORED_TARGET {
            gradient.extend(vec![0.0; vocab_size]);
            continue;
        }
        let plain = log_softmax(student, 1.0);
        let soft = log_softmax(student, temperature);
        let taught = log_softmax(teacher, temperature);
        sums.loss -= plain[target as usize];
        for i in 0..vocab_size {
            sums.divergence += temperature.powi(2) * taught[i].exp() * (taught[i] - soft[i]);
            let onehot = f64::from(u8::from(i as i64 == target));
            let distilled = temperature * (soft[i].exp() - taught[i].exp());
            gradient.push((1.0 - weight) * (plain[i].exp() - onehot) + weight * distilled);
        }
    }
    (sums, gradient)
}

fn check<E: Tolerance>(vocab_size: usize) {
    let logits = sample::<E>(2 * NUM_ROWS * vocab_size, 10.0);
    let (student, teacher) = logits.split_at(NUM_ROWS * vocab_size);
    let targets = targets(vocab_size);
    let (sums, gradient) = reference((&exact(student), &exact(teacher)), &targets, vocab_size);
    let run = |num_threads| {
        let mut student = student.to_vec();
        let pool = Pool::new(num_threads);
        let logits = (&mut student[..], teacher);
        let sums = mixed_loss_and_grad(&pool, logits, &targets, vocab_size, MIXTURE);
        (sums, student)
    };
    let (found, found_gradient) = run(1);
    for (found, expected) in [(found.loss, sums.loss), (found.divergence, sums.divergence)] {
        let error = (found - expected).abs();
        assert!(error <= LOSS_TOLERANCE * expected.max(1.0), "{found} for {expected}");
    }
    // Two distributions cancel, each at most the weight times the temperature.
    assert_close(&found_gradient, &gradient, 2.0, &format!("gradient, {vocab_size}"));
    let two = run(2);
    assert_eq!(two.0, found);
    assert_same(&two.1, &found_gradient, "threads");
}

#[test]
fn agrees_with_f64_on_any_number_of_threads() {
    for vocab_size in VOCAB_SIZES {
        check::<f32>(vocab_size);
        check::<bf16>(vocab_size);
    }
}

#[test]
fn without_weight_it_is_the_cross_entropy() {
    let (vocab_size, pool) = (300, Pool::new(1));
    let logits = sample::<f32>(2 * NUM_ROWS * vocab_size, 10.0);
    let (student, teacher) = logits.split_at(NUM_ROWS * vocab_size);
    let targets = targets(vocab_size);
    let (mut mixed, mut plain) = (student.to_vec(), student.to_vec());
    let mixture = Mixture { weight: 0.0, temperature: 2.0 };
    let sums = mixed_loss_and_grad(&pool, (&mut mixed, teacher), &targets, vocab_size, mixture);
    let expected =
        cross_entropy::loss_and_grad(&pool, &mut plain, &targets, vocab_size, Terms::default())
            .unwrap();
    assert!((sums.loss - expected.loss).abs() <= LOSS_TOLERANCE * expected.loss);
    assert_close(&mixed, &exact(&plain), 1.0, "gradient");
}

#[test]
fn a_student_that_knows_it_all_has_nothing_to_learn() {
    let (vocab_size, pool) = (300, Pool::new(1));
    let teacher = sample::<f32>(NUM_ROWS * vocab_size, 10.0);
    let mut student = teacher.clone();
    let mixture = Mixture { weight: 1.0, temperature: 2.0 };
    let logits = (&mut student[..], &teacher[..]);
    let sums = mixed_loss_and_grad(&pool, logits, &targets(vocab_size), vocab_size, mixture);
    assert!(sums.divergence.abs() < LOSS_TOLERANCE, "{}", sums.divergence);
    assert_close(&student, &vec![0.0; student.len()], 1.0, "gradient");
}
