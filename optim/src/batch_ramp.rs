//! The number of micro-batches of a step as a pure function of the step: a batch-size ramp.

use crate::error::{Error, Result};

/// Micro-batches of every step: from a smaller number up to the full one, in equal stairs (linear
/// in steps; Brown et al. 2020, arXiv:2005.14165, appendix B, ramps the batch over its first tokens).
///
/// With first number `a`, full number `b` and `n` ramp steps, counted from **0**:
///
/// ```text
/// step < n    a + floor((b - a) step / n)
/// step >= n   b
/// ```
///
/// Worked numbers, `a = 2`, `b = 8`, `n = 4`: 2, 3, 5, 6, then 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRamp {
    first: u64,
    full: u64,
    ramp_steps: u64,
}

impl BatchRamp {
    /// The same number of micro-batches in every step.
    pub fn constant(full: u64) -> Self {
        Self { first: full, full, ramp_steps: 0 }
    }

    /// From `first` to `full` micro-batches over `ramp_steps` steps.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `1 <= first <= full`.
    pub fn new(first: u64, full: u64, ramp_steps: u64) -> Result<Self> {
        if first == 0 || first > full {
            return Err(Error::OutOfRange {
                key: "batch.ramp_from".to_owned(),
                value: first as f64,
                expected: "1 <= ramp_from <= batch.micro_batches",
                usual: (full / 16).max(1) as f64,
            });
        }
        Ok(Self { first, full, ramp_steps })
    }

    /// Micro-batches of `step`, counted from **0**.
    pub fn count(&self, step: u64) -> u64 {
        if step >= self.ramp_steps {
            return self.full;
        }
        let added = u128::from(self.full - self.first) * u128::from(step);
        self.first + (added / u128::from(self.ramp_steps)) as u64
    }

    /// Micro-batches of all steps before `step`: the global number of its first one.
    pub fn before(&self, step: u64) -> u64 {
        let ramped = step.min(self.ramp_steps);
        let during: u64 = (0..ramped).map(|earlier| self.count(earlier)).sum();
        during.saturating_add((step - ramped).saturating_mul(self.full))
    }

    /// Micro-batches of a step after the ramp.
    pub fn full(&self) -> u64 {
        self.full
    }

    /// The fewest micro-batches that a step has.
    pub fn least(&self) -> u64 {
        self.count(0)
    }
}

#[cfg(test)]
mod tests;
