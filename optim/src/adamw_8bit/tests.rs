//! Worked number, the order of the decay, and how near quantized states stay to full ones.

use super::{AdamW8bit, AdamW8bitConfig};
use crate::sample::{self, Buffers, SCALARS};
use crate::{MIN_QUANTIZED_ELEMENTS, Rule, Scalars};

fn rule() -> Rule {
    Rule::AdamW8bit(AdamW8bit::new(AdamW8bitConfig::default()).unwrap())
}

#[test]
fn the_worked_number_of_the_docs() {
    let scalars = Scalars { lr: 0.1, grad_scale: 1.0, step: 1, ..SCALARS };
    let (theta, [m, v]) = sample::one_step(&rule(), 1.0, 0.5, [0.0; 2], &scalars);
    assert!((theta - 0.891 - 2e-9).abs() < 1e-10, "{theta}");
    assert!((m - 0.05).abs() < 1e-15 && (v - 0.0125).abs() < 1e-15, "{m} {v}");
}

#[test]
fn the_first_step_is_that_of_full_states() {
    let full = rule().state_specs(MIN_QUANTIZED_ELEMENTS - 1);
    let mut full = Buffers::<f32>::new(full, 700, 5);
    let mut quantized = Buffers::<f32>::new(rule().state_specs(MIN_QUANTIZED_ELEMENTS), 700, 5);
    let scalars = Scalars { step: 1, ..SCALARS };
    rule().update(full.elements(true), &scalars).unwrap();
    rule().update(quantized.elements(true), &scalars).unwrap();
    assert_eq!(full.master, quantized.master, "states are quantized after they were used");
    assert_eq!(full.copy, quantized.copy);
}

#[test]
fn ranges_are_named() {
    let config = AdamW8bitConfig { eps: 0.0, ..AdamW8bitConfig::default() };
    let error = AdamW8bit::new(config).unwrap_err().to_string();
    assert!(error.starts_with("optim.eps = 0 is out of range"), "{error}");
}

/// A quadratic bowl: quantized states reach its bottom about as fast as full ones.
#[test]
fn a_bowl_is_descended_as_with_full_states() {
    let distance = |numel: usize| {
        let mut buffers = Buffers::<f32>::new(rule().state_specs(numel), 512, 1);
        buffers.master.fill(1.0);
        for step in 1..=200 {
            let slopes = buffers.master.iter().enumerate();
            buffers.grad = slopes.map(|(i, theta)| theta * (1.0 + i as f32 / 64.0)).collect();
            let scalars = Scalars { lr: 0.01, weight_decay: 0.0, grad_scale: 1.0, step, ..SCALARS };
            rule().update(buffers.elements(false), &scalars).unwrap();
        }
        buffers.master.iter().map(|x| f64::from(x * x)).sum::<f64>() / 512.0
    };
    let (full, quantized) = (distance(1), distance(MIN_QUANTIZED_ELEMENTS));
    // Both have come from 1 to below a step's length squared; neither is better by much.
    assert!(full < 1e-4 && quantized < 1e-4, "{full} {quantized}");
}
