//! Worked number, bound of a step, its two limits, and the folding of estimates.

use super::{HessianEstimate, Sophia, SophiaConfig};
use crate::sample::{self, SCALARS, values};
use crate::{Real, Rule, Scalars};
use proptest::prelude::*;
use tch::Tensor;

const GNB: HessianEstimate =
    HessianEstimate::GaussNewtonBartlett { grad_scale: 0.25, num_tokens: 4.0 };

fn sophia(config: SophiaConfig) -> Sophia {
    Sophia::new(config).unwrap()
}

/// One f64 element; returns the parameter and the momentum.
fn one_step(config: SophiaConfig, theta: f64, grad: f64, [m, h]: [f64; 2], lr: f64) -> [f64; 2] {
    let scalars = Scalars { lr, grad_scale: 1.0, weight_decay: config.weight_decay, ..SCALARS };
    let rule = Rule::Sophia(sophia(config));
    let (theta, [m, new_h]) = sample::one_step(&rule, theta, grad, [m, h], &scalars);
    assert!(new_h == h || h.is_nan(), "an update leaves the Hessian as it is");
    [theta, m]
}

#[test]
fn the_worked_number_of_the_docs() {
    let [theta, m] = one_step(SophiaConfig::default(), 1.0, 1.0, [0.0, 4.0], 0.1);
    assert!((theta - 0.9625).abs() < 1e-15 && (m - 0.035).abs() < 1e-15, "{theta} {m}");
}

#[test]
fn without_curvature_a_step_is_the_sign() {
    let config = SophiaConfig { weight_decay: 0.0, ..SophiaConfig::default() };
    for h in [0.0, -3.0] {
        assert_eq!(one_step(config, 0.0, 2.0, [0.0, h], 0.01)[0], -0.01);
        assert_eq!(one_step(config, 0.0, -2.0, [0.0, h], 0.01)[0], 0.01);
        assert_eq!(one_step(config, 0.0, 0.0, [0.0, h], 0.01)[0], 0.0);
    }
    assert!(one_step(config, 0.0, f64::NAN, [0.0, 1.0], 0.01)[0].is_nan());
    assert!(one_step(config, 0.0, 1.0, [0.0, f64::NAN], 0.01)[0].is_nan());
}

#[test]
fn the_two_estimates_are_folded() {
    let rule = sophia(SophiaConfig { beta2: 0.75, ..SophiaConfig::default() });
    let mut h = [8.0_f64, 8.0];
    // 4 tokens, mean gradient 6 / 4: 4 * 2.25 = 9; 0.75 * 8 + 0.25 * 9.
    rule.fold_estimate(&mut h, &[6.0, 0.0], GNB).unwrap();
    assert_eq!(h, [8.25, 6.0]);
    let mut h = [8.0_f64, 8.0];
    rule.fold_estimate(&mut h, &[-6.0, 2.0], HessianEstimate::Hutchinson { scale: 2.0 }).unwrap();
    assert_eq!(h, [3.0, 7.0]);
}

/// The order that matters between ranks: the mean gradient squared is not the mean of squares.
#[test]
fn the_estimate_squares_after_the_average() {
    let rule = sophia(SophiaConfig { beta2: 0.0, ..SophiaConfig::default() });
    let ranks = [[1.0_f64, -3.0], [7.0, 3.0]];
    let sum = [ranks[0][0] + ranks[1][0], ranks[0][1] + ranks[1][1]];
    let mut h = [0.0; 2];
    rule.fold_estimate(&mut h, &sum, GNB).unwrap();
    assert_eq!(h, [16.0, 0.0]);
}

#[test]
fn refusals_are_named() {
    let text = |config| Sophia::new(config).unwrap_err().to_string();
    let gamma = text(SophiaConfig { gamma: 0.0, ..SophiaConfig::default() });
    assert!(gamma.starts_with("optim.gamma = 0 is out of range: expected 0 < gamma"), "{gamma}");
    assert!(
        text(SophiaConfig { eps: 0.0, ..SophiaConfig::default() }).starts_with("optim.eps = 0 is")
    );
    let rule = sophia(SophiaConfig::default());
    let (mut h, short) = ([1.0_f32; 3], [1.0; 2]);
    let error = rule.fold_estimate(&mut h, &short, GNB).unwrap_err().to_string();
    assert!(error.starts_with("buffer hessian estimate has 2 elements"), "{error}");
    let none = HessianEstimate::GaussNewtonBartlett { grad_scale: 1.0, num_tokens: 0.0 };
    let error = rule.fold_estimate(&mut h, &[1.0; 3], none).unwrap_err().to_string();
    assert!(error.contains("num_tokens of a Hessian estimate"), "{error}");
    let nan = HessianEstimate::Hutchinson { scale: f64::NAN };
    assert!(rule.fold_estimate(&mut h, &[1.0; 3], nan).is_err());
    assert_eq!(h, [1.0; 3], "nothing may be written before a refusal");
}

#[test]
fn folding_tensors_agrees() {
    let rule = sophia(SophiaConfig::default());
    for estimate in [GNB, HessianEstimate::Hutchinson { scale: 0.3 }] {
        let (mut h, buffer): (Vec<f64>, Vec<f64>) = (values(1000, 1), values(1000, 2));
        let mut tensor = Tensor::from_slice(&h);
        rule.fold_estimate(&mut h, &buffer, estimate).unwrap();
        rule.fold_estimate_tensor(&mut tensor, &Tensor::from_slice(&buffer), estimate).unwrap();
        for (slice, tensor) in h.iter().zip(Vec::<f64>::try_from(&tensor).unwrap()) {
            // Another order of four roundings.
            assert!((slice - tensor).abs() <= 1e-15 * slice.to_f64().abs(), "{slice} {tensor}");
        }
    }
}

proptest! {
    #[test]
    fn a_step_is_at_most_the_learning_rate_and_the_decay(
        theta in -2.0_f64..2.0, grad in -5.0_f64..5.0, m in -1.0_f64..1.0,
        h in -0.1_f64..10.0, lr in 1e-5_f64..0.1,
    ) {
        let config = SophiaConfig::default();
        let [updated, _] = one_step(config, theta, grad, [m, h], lr);
        let bound = lr * (1.0 + config.weight_decay * theta.abs());
        // A few roundings of numbers below 3.
        prop_assert!((updated - theta).abs() <= bound + 2e-15, "{updated}");
    }

    /// Where nothing is clipped: a Newton step of the momentum, over gamma.
    #[test]
    fn a_large_gamma_gives_newton_steps(
        grad in -5.0_f64..5.0, m in -1.0_f64..1.0, h in 0.1_f64..10.0,
    ) {
        let config = SophiaConfig { gamma: 1e3, weight_decay: 0.0, ..SophiaConfig::default() };
        let [updated, new_m] = one_step(config, 0.0, grad, [m, h], 0.1);
        prop_assert!((updated + 0.1 * new_m / (1e3 * h)).abs() < 1e-15, "{updated}");
    }
}
