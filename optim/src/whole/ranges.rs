//! Ranges that hyper-parameters of several whole-matrix rules have in common.

use crate::error::{Result, require};

/// A decay of a moving average: `0 <= value < 1`.
pub(super) fn require_beta(key: &str, value: f64, usual: f64) -> Result<()> {
    require((0.0..1.0).contains(&value), key, value, "0 <= value < 1", usual)
}

/// A regularizer of a denominator, `lowest <= value < 1`; `expected` says so.
pub(super) fn require_eps(
    key: &str,
    value: f64,
    (lowest, expected): (f64, &'static str),
    usual: f64,
) -> Result<()> {
    require((lowest..1.0).contains(&value), key, value, expected, usual)
}

/// A factor: positive and finite.
pub(super) fn require_positive(key: &str, value: f64, usual: f64) -> Result<()> {
    require(value > 0.0 && value.is_finite(), key, value, "0 < value < inf", usual)
}

/// A number of something, from 1.
pub(super) fn require_count(key: &str, value: u64, usual: f64) -> Result<()> {
    require(value >= 1, key, value as f64, "an integer >= 1", usual)
}

/// Decoupled weight decay.
pub(super) fn require_weight_decay(value: f64, usual: f64) -> Result<()> {
    let holds = value >= 0.0 && value.is_finite();
    require(holds, "optim.weight_decay", value, "0 <= weight_decay < inf", usual)
}

/// The smallest `eps` that is added to a root: below it, `eps` would soon be zero in f32.
pub(super) const ROOT_EPS: (f64, &str) = (1e-30, "1e-30 <= eps < 1");
