//! Loss and gradient against f64, and the rows that are special.

use super::super::testing::assert_same_at_all_levels;
use super::super::testing::{Tolerance, assert_close, assert_same, exact, sample};
use super::*;
use half::bf16;

const NUM_ROWS: usize = 29;
/// Below, at and above one span, and none a multiple of a register but two.
const VOCAB_SIZES: [usize; 6] = [1, 7, 1000, 1024, 1025, 3001];
/// Relative error of a loss: a few roundings in f32.
const LOSS_TOLERANCE: f64 = 1e-6;

/// Targets all over the vocabulary, every fifth one ignored.
fn targets(vocab_size: usize) -> Vec<i64> {
    let target = |row: usize| (row * 7919 % vocab_size) as i64;
    (0..NUM_ROWS).map(|row| if row % 5 == 4 { IGNORED_TARGET } else { target(row) }).collect()
}

/// `(loss, gradient)`.
fn reference(logits: &[f64], targets: &[i64], vocab_size: usize) -> (f64, Vec<f64>) {
    let (mut loss, mut gradient) = (0.0, Vec::new());
    for (row, target) in logits.chunks(vocab_size).zip(targets) {
        if *target == IGNORED_TARGET {
            gradient.extend(vec![0.0; vocab_size]);
            continue;
        }
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|logit| (logit - max).exp()).sum();
        loss += sum.ln() + max - row[*target as usize];
        let onehot = |token: usize| f64::from(u8::from(token as i64 == *target));
        let probability = |logit: &f64| (logit - max).exp() / sum;
        gradient.extend(row.iter().enumerate().map(|(t, logit)| probability(logit) - onehot(t)));
    }
    (loss, gradient)
}

fn check<E: Tolerance>(vocab_size: usize) {
    let (logits, targets) = (sample::<E>(NUM_ROWS * vocab_size, 20.0), targets(vocab_size));
    let (loss, gradient) = reference(&exact(&logits), &targets, vocab_size);
    let run = |num_threads| {
        let pool = Pool::new(num_threads);
        let mut logits = logits.clone();
        let only = loss_only(&pool, &logits, &targets, vocab_size).unwrap();
        let both =
            loss_and_grad(&pool, &mut logits, &targets, vocab_size, Terms::default()).unwrap();
        assert_eq!(only, both);
        (both, logits)
    };
    let (found, found_gradient) = run(1);
    assert_eq!(found.num_tokens, NUM_ROWS - NUM_ROWS / 5);
    let error = (found.loss - loss).abs();
    assert!(error <= LOSS_TOLERANCE * loss.max(1.0), "{} for {loss}, {vocab_size}", found.loss);
    // The gradient at the target cancels from 1.
    assert_close(&found_gradient, &gradient, 1.0, &format!("gradient, {vocab_size}"));
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
fn terms_agree_with_f64() {
    let terms = Terms { z_loss: 1e-2, label_smoothing: 0.2 };
    for vocab_size in VOCAB_SIZES {
        let (logits, targets) = (sample::<f32>(NUM_ROWS * vocab_size, 9.0), targets(vocab_size));
        let wide = exact(&logits);
        let (mut loss, mut gradient) = reference(&wide, &targets, vocab_size);
        let rows = wide.chunks(vocab_size).zip(gradient.chunks_mut(vocab_size));
        for ((row, gradient), &target) in rows.zip(&targets) {
            if target == IGNORED_TARGET {
                continue;
            }
            let log_sum = row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
            let mean = row.iter().sum::<f64>() / vocab_size as f64;
            loss += 1e-2 * log_sum * log_sum + 0.2 * (row[target as usize] - mean);
            for (token, gradient) in gradient.iter_mut().enumerate() {
                let is_target = f64::from(u8::from(token as i64 == target));
                let probability = *gradient + is_target;
                *gradient += 0.02 * log_sum * probability + 0.2 * is_target;
                *gradient -= 0.2 / vocab_size as f64;
            }
        }
        let mut found = logits.clone();
        let sum = loss_and_grad(&Pool::new(2), &mut found, &targets, vocab_size, terms).unwrap();
        assert!((sum.loss - loss).abs() <= LOSS_TOLERANCE * loss.abs(), "{} {loss}", sum.loss);
        assert_close(&found, &gradient, 1.0, &format!("gradient with terms, {vocab_size}"));
    }
}

#[test]
fn many_blocks_give_the_same_sum_on_any_number_of_threads() {
    let vocab_size = 1025;
    let logits = sample::<f32>(200 * vocab_size, 5.0);
    let targets: Vec<i64> = (0..200).collect();
    let run = |n| loss_only(&Pool::new(n), &logits, &targets, vocab_size).unwrap();
    assert_eq!(run(1).loss.to_bits(), run(2).loss.to_bits());
}

#[test]
fn masked_and_huge_logits() {
    // A masked span first, then one far below 0; the exponentials of plain logits would all vanish.
    let mut logits = vec![f32::NEG_INFINITY; SPAN];
    logits.extend([-1000.0, -1000.0]);
    let target = [SPAN as i64];
    let found =
        loss_and_grad(&Pool::new(1), &mut logits, &target, SPAN + 2, Terms::default()).unwrap();
    assert!((found.loss - 2f64.ln()).abs() < LOSS_TOLERANCE, "{}", found.loss);
    assert!(logits[..SPAN].iter().all(|g| *g == 0.0));
    assert_eq!(logits[SPAN..], [-0.5, 0.5]);

    let mut logits = [3e38f32, 0.0];
    let found = loss_and_grad(&Pool::new(1), &mut logits, &[0], 2, Terms::default()).unwrap();
    assert_eq!(found.loss, 0.0);
    assert_eq!(logits, [0.0, 0.0]);
}

#[test]
fn a_nan_reaches_the_loss() {
    for vocab_size in [3, SPAN, 2 * SPAN] {
        let mut logits = vec![1.0f32; vocab_size];
        logits[1] = f32::NAN;
        let found = loss_only(&Pool::new(1), &logits, &[0], vocab_size).unwrap();
        assert!(found.loss.is_nan(), "{vocab_size}");
    }
}

#[test]
fn only_ignored_rows() {
    let mut logits = [1.0f32, 2.0];
    let found =
        loss_and_grad(&Pool::new(2), &mut logits, &[IGNORED_TARGET], 2, Terms::default()).unwrap();
    assert_eq!(found, LossSum::default());
    assert_eq!(logits, [0.0, 0.0]);
}

#[test]
fn a_target_outside_of_the_vocabulary_is_named() {
    for bad in [3, -1] {
        let mut logits = [1.0f32; 9];
        let error = loss_and_grad(&Pool::new(1), &mut logits, &[0, bad, 7], 3, Terms::default())
            .unwrap_err();
        assert_eq!(
            error,
            Error::Target { row: 1, target: bad, vocab_size: 3, ignored: IGNORED_TARGET }
        );
        let message = error.to_string();
        assert!(message.starts_with(&format!("target 1 is {bad}, expected a token id below")));
        assert_eq!(logits, [1.0; 9], "unchanged");
    }
}

#[test]
fn all_levels_give_the_same_bits() {
    for vocab_size in VOCAB_SIZES {
        let (logits, targets) = (sample::<bf16>(NUM_ROWS * vocab_size, 9.0), targets(vocab_size));
        assert_same_at_all_levels("cross-entropy", |level| {
            let (mut logits, mut losses) = (logits.clone(), vec![0.0; NUM_ROWS]);
            level.run(GradientBlock {
                logits: &mut logits,
                targets: &targets,
                vocab_size,
                terms: Terms { z_loss: 1e-2, label_smoothing: 0.1 },
                losses: &mut losses,
                scratch: &mut Scratch::default(),
            });
            let mut all: Vec<f32> = logits.iter().map(|g| g.to_f32()).collect();
            all.extend(losses.iter().map(|loss| *loss as f32));
            all
        });
    }
}
