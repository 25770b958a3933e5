//! Worked number, step length, sign of zero and NaN, and ranges of Lion.

use super::{Lion, LionConfig};
use crate::sample::{self, Buffers};
use crate::{Rule, Scalars, StateDtype};
use proptest::prelude::*;

/// One f64 element through Lion with the defaults; returns the parameter and the momentum.
fn one_step(theta: f64, grad: f64, m: f64, scalars: &Scalars) -> [f64; 2] {
    let rule = Rule::Lion(Lion::new(LionConfig::default()).unwrap());
    let (theta, [m]) = sample::one_step(&rule, theta, grad, [m], scalars);
    [theta, m]
}

const SCALARS: Scalars =
    Scalars { lr: 0.01, weight_decay: 1.0, grad_scale: 1.0, ..sample::SCALARS };

#[test]
fn the_worked_number_of_the_docs() {
    let [theta, m] = one_step(1.0, 0.5, 0.0, &SCALARS);
    assert!((theta - 0.98).abs() < 1e-15 && (m - 0.01).abs() < 1e-15, "{theta} {m}");
}

#[test]
fn zero_only_decays_and_nan_stays_visible() {
    assert_eq!(one_step(1.0, 0.0, 0.0, &SCALARS), [0.99, 0.0]);
    assert_eq!(one_step(1.0, -0.0, -0.0, &SCALARS)[0], 0.99);
    assert!(one_step(1.0, f64::NAN, 0.0, &SCALARS).iter().all(|x| x.is_nan()));
    assert!((one_step(1.0, f64::NEG_INFINITY, 0.0, &SCALARS)[0] - 1.0).abs() < 1e-15);
}

#[test]
fn the_direction_uses_the_old_momentum() {
    // 0.95 * 1 - 0.05 * 18 = 0.05 > 0, whereas the new momentum would give a negative direction.
    let [theta, m] = one_step(0.0, -18.0, 1.0, &SCALARS);
    assert_eq!(theta, -0.01);
    assert!((m - 0.62).abs() < 1e-12, "{m}");
    let flipped = one_step(0.0, -20.0, 1.0, &SCALARS)[0];
    assert_eq!(flipped, 0.01);
}

#[test]
fn ranges_are_named() {
    let error = Lion::new(LionConfig { beta1: -0.5, ..LionConfig::default() }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "optim.betas[0] = -0.5 is out of range: expected 0 <= betas[0] < 1; a usual value is 0.95"
    );
}

#[test]
fn a_bf16_momentum_reaches_a_constant_gradient() {
    let config = LionConfig { state_dtype: StateDtype::Bf16, ..LionConfig::default() };
    let rule = Rule::Lion(Lion::new(config).unwrap());
    let mut buffers = Buffers::<f32>::new(rule.state_specs(512), 512, 1);
    buffers.grad.fill(1.0);
    for step in 1..=500 {
        rule.update(buffers.elements(false), &Scalars { step, ..SCALARS }).unwrap();
    }
    let mean = buffers.state[0].to_f64().iter().sum::<f64>() / 512.0;
    // Rounded to nearest it would stand still at 0.90, where 0.02 (1 - m) is half of 2^-8.
    assert!((mean - 1.0).abs() < 0.01, "{mean}");
}

proptest! {
    /// Besides the decay, an element moves by the learning rate or not at all.
    #[test]
    fn a_step_is_the_learning_rate_or_nothing(
        theta in -2.0_f64..2.0,
        grad in prop_oneof![Just(0.0), -5.0_f64..5.0],
        m in prop_oneof![Just(0.0), -1.0_f64..1.0],
        lr in 1e-5_f64..0.1,
    ) {
        let [updated, _] = one_step(theta, grad, m, &Scalars { lr, ..SCALARS });
        let moved = (updated - theta + lr * SCALARS.weight_decay * theta).abs();
        // A few roundings of numbers below 3.
        let near = |length: f64| (moved - length).abs() < 2e-15;
        let expected = if grad == 0.0 && m == 0.0 { 0.0 } else { lr };
        prop_assert!(near(expected), "{moved}");
    }
}
