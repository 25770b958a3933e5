//! Worked number and step length of Lion with a quantized momentum.

use super::{Lion8bit, Lion8bitConfig};
use crate::sample::{self, Buffers, SCALARS};
use crate::{MIN_QUANTIZED_ELEMENTS, Rule, Scalars};

fn rule() -> Rule {
    Rule::Lion8bit(Lion8bit::new(Lion8bitConfig::default()).unwrap())
}

#[test]
fn the_worked_number_of_the_docs() {
    let scalars = Scalars { lr: 0.01, weight_decay: 1.0, grad_scale: 1.0, ..SCALARS };
    let (theta, [m]) = sample::one_step(&rule(), 1.0, 0.5, [0.0], &scalars);
    assert!((theta - 0.98).abs() < 1e-15 && (m - 0.01).abs() < 1e-15, "{theta} {m}");
}

#[test]
fn a_step_is_the_learning_rate_or_nothing() {
    let specs = rule().state_specs(MIN_QUANTIZED_ELEMENTS);
    let mut buffers = Buffers::<f64>::new(specs, 1000, 3);
    for step in 1..=5 {
        let before = buffers.master.clone();
        rule().update(buffers.elements(false), &Scalars { step, ..SCALARS }).unwrap();
        for (old, new) in before.iter().zip(&buffers.master) {
            let moved = (new - old * (1.0 - SCALARS.lr * SCALARS.weight_decay)).abs();
            // Roundings of numbers up to 1e9 beside a step of 1e-3.
            let near = |length: f64| (moved - length).abs() <= 1e-15 * old.abs().max(1.0);
            assert!(near(0.0) || near(SCALARS.lr), "{old} to {new}");
        }
    }
}

#[test]
fn ranges_are_named() {
    let config = Lion8bitConfig { beta2: 1.0, ..Lion8bitConfig::default() };
    let error = Lion8bit::new(config).unwrap_err().to_string();
    assert!(error.starts_with("optim.betas[1] = 1 is out of range"), "{error}");
}
