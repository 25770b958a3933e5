//! Worked number, exactness at rank 1, invariance and ranges of Adafactor.

use super::{Adafactor, AdafactorConfig, StepScale};
use crate::whole::WholeRuleConfig;
use crate::whole::tests::{Run, gap, matrix, noise};
use tch::{Kind, Tensor};

/// A few roundings in f64.
const TOLERANCE: f64 = 1e-14;

fn run(step_scale: StepScale, rows: i64, cols: i64, dtype: Kind) -> Run {
    let config = AdafactorConfig { step_scale, ..AdafactorConfig::default() };
    Run::new(WholeRuleConfig::Adafactor(config), matrix(rows, cols), dtype)
}

#[test]
fn the_worked_number_of_the_docs() {
    let mut run = run(StepScale::Relative, 1, 1, Kind::Double);
    run.master = Some(Tensor::from_slice(&[2.0]).view([1, 1]));
    let update = run.update(&Tensor::from_slice(&[0.5]).view([1, 1]), 0.01);
    assert!((update.double_value(&[0, 0]) - 0.02).abs() < TOLERANCE, "{update}");
}

#[test]
fn a_gradient_whose_square_has_rank_one_steps_by_its_sign() {
    let square = noise(&[5], 1).abs().outer(&noise(&[7], 2).abs());
    let sign = noise(&[5, 7], 3).sign();
    let mut run = run(StepScale::Plain, 5, 7, Kind::Double);
    for _ in 0..3 {
        let update = run.update(&(square.sqrt() * &sign), 0.1);
        assert!(gap(&update, &(&sign * 0.1)) < TOLERANCE);
    }
}

#[test]
fn the_size_of_gradients_does_not_matter() {
    let (mut one, mut other) =
        (run(StepScale::Plain, 6, 9, Kind::Double), run(StepScale::Plain, 6, 9, Kind::Double));
    for seed in 0..5 {
        let grad = noise(&[6, 9], seed);
        let update = one.update(&grad, 0.1);
        assert!(gap(&other.update(&(grad * 1e-3), 0.1), &update) < 1e-12);
        let rms = update.square().mean(Kind::Double).sqrt().double_value(&[]);
        assert!(rms <= 0.1 * (1.0 + TOLERANCE), "the clip threshold is 1: {rms}");
    }
}

#[test]
fn the_relative_step_follows_the_parameter_and_the_square_root() {
    let grad = noise(&[6, 9], 1);
    for (size, lr, factor) in [(3.0, 0.1, 0.3), (1e-9, 0.1, 1e-4), (3.0, 7.0, 3.0)] {
        let mut relative = run(StepScale::Relative, 6, 9, Kind::Double);
        let mut plain = run(StepScale::Plain, 6, 9, Kind::Double);
        relative.master = Some(grad.ones_like() * size);
        let found = relative.update(&grad, lr);
        assert!(gap(&found, &(plain.update(&grad, 1.0) * factor)) < TOLERANCE, "{size} {lr}");
    }
    // Update 25 is the second of these two; its cap is 1 / 5.
    let mut relative = run(StepScale::Relative, 6, 9, Kind::Double);
    let mut plain = run(StepScale::Plain, 6, 9, Kind::Double);
    relative.master = Some(grad.ones_like());
    (relative.step, plain.step) = (24, 24);
    assert!(gap(&relative.update(&grad, 7.0), &(plain.update(&grad, 1.0) * 0.2)) < TOLERANCE);
}

#[test]
fn a_row_without_gradient_stays() {
    let mut run = run(StepScale::Plain, 4, 8, Kind::Float);
    for seed in 0..3 {
        let grad = (noise(&[4, 8], seed) * 1e-6).to_kind(Kind::Float);
        let _ = grad.narrow(0, 2, 1).fill_(0.0);
        let update = run.update(&grad, 0.1);
        assert!(update.narrow(0, 2, 1).abs().max().double_value(&[]) == 0.0);
        assert!(update.isfinite().all().int64_value(&[]) == 1);
        assert!(update.square().mean(Kind::Float).sqrt().double_value(&[]) > 0.05, "{update}");
    }
}

#[test]
fn ranges_are_named() {
    let text = |config| Adafactor::new(config).unwrap_err().to_string();
    assert_eq!(
        text(AdafactorConfig { eps1: 1e-30, ..AdafactorConfig::default() }),
        "optim.eps1 = 0.000000000000000000000000000001 is out of range: expected 1.1e-19 <= eps1 < \
         1; a usual value is 0.000000000000000001"
    );
    let config = AdafactorConfig { decay_power: f64::NAN, ..AdafactorConfig::default() };
    assert!(text(config).starts_with("optim.decay_power = NaN"));
    let config = AdafactorConfig { clip_threshold: 0.0, ..AdafactorConfig::default() };
    assert!(text(config).starts_with("optim.clip_threshold = 0 "));
}
