//! What one update reads and writes: buffers cut with one range, and the numbers of the step.

use crate::error::{Error, Result};
use crate::real::Real;
use half::bf16;

/// Where the rounded copy goes that the model computes with.
#[derive(Debug)]
pub enum Working<'a> {
    /// The model computes with the master itself, or the caller makes the copy.
    None,
    /// `[n]` bf16, rounded to nearest even in the same pass over memory.
    Bf16(&'a mut [bf16]),
}

/// One range of a flat buffer, on the CPU. All slices have the same length `n`.
///
/// A caller with several threads cuts the range with [`Elements::split_at`] and updates the pieces
/// in parallel: rules are element-wise, so the bits do not depend on the cuts.
#[derive(Debug)]
pub struct Elements<'a, T: Real> {
    /// `[n]` master parameters; read and written.
    pub master: &'a mut [T],
    /// `[n]` gradient before `grad_scale`; read only.
    pub grad: &'a [T],
    /// One `[n]` buffer for each of [`crate::Rule::state_kinds`], in that order; read and written.
    /// All start at zero.
    pub state: Vec<&'a mut [T]>,
    /// The model's rounded copy; written.
    pub working: Working<'a>,
}

impl<'a, T: Real> Elements<'a, T> {
    /// Cuts into elements `0..mid` and `mid..n`. Panics if `mid` is beyond any buffer.
    pub fn split_at(self, mid: usize) -> (Self, Self) {
        let (master, master_tail) = self.master.split_at_mut(mid);
        let (grad, grad_tail) = self.grad.split_at(mid);
        let (state, state_tail) = self.state.into_iter().map(|s| s.split_at_mut(mid)).unzip();
        let (working, working_tail) = match self.working {
            Working::None => (Working::None, Working::None),
            Working::Bf16(copy) => {
                let (copy, copy_tail) = copy.split_at_mut(mid);
                (Working::Bf16(copy), Working::Bf16(copy_tail))
            }
        };
        let head = Elements { master, grad, state, working };
        let tail = Elements {
            master: master_tail,
            grad: grad_tail,
            state: state_tail,
            working: working_tail,
        };
        (head, tail)
    }

    /// The state as an array, once every length was compared with the master's.
    pub(crate) fn checked<const STATES: usize>(
        self,
        rule: &'static str,
        names: [&'static str; STATES],
    ) -> Result<Checked<'a, T, STATES>> {
        let expected = self.master.len();
        let check = |buffer, found| {
            if found == expected { Ok(()) } else { Err(Error::Length { buffer, expected, found }) }
        };
        check("grad", self.grad.len())?;
        if let Working::Bf16(copy) = &self.working {
            check("working", copy.len())?;
        }
        for (name, state) in names.iter().zip(&self.state) {
            check(name, state.len())?;
        }
        let state = <[&mut [T]; STATES]>::try_from(self.state)
            .map_err(|state| Error::StateCount { rule, expected: STATES, found: state.len() })?;
        Ok(Checked { master: self.master, grad: self.grad, state, working: self.working })
    }
}

/// [`Elements`] whose buffers are known to have one length.
pub(crate) struct Checked<'a, T: Real, const STATES: usize> {
    pub(crate) master: &'a mut [T],
    pub(crate) grad: &'a [T],
    pub(crate) state: [&'a mut [T]; STATES],
    pub(crate) working: Working<'a>,
}

/// The numbers of one step; `f64` whatever the elements are, each rounded once where it is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scalars {
    /// Learning rate of this step and group: [`crate::Schedule::lr`] times the group's multiplier.
    pub lr: f64,
    /// Decoupled weight decay of this group. A step multiplies the parameter by
    /// `1 - lr * weight_decay`.
    pub weight_decay: f64,
    /// Factor on each gradient element before anything else: one over the token count, times the
    /// clip scale.
    pub grad_scale: f64,
    /// Number of this update, from **1**: the schedule's zero-based step plus one. Only bias
    /// correction uses it.
    pub step: u64,
}

impl Scalars {
    /// Refuses numbers that would spoil every element at once.
    pub(crate) fn validate(&self) -> Result<()> {
        let check = |holds, name, value, expected| {
            if holds { Ok(()) } else { Err(Error::Scalar { name, value, expected }) }
        };
        check(self.lr >= 0.0 && self.lr.is_finite(), "lr", self.lr, "0 <= lr < inf")?;
        let decay = self.lr * self.weight_decay;
        check(
            (0.0..=1.0).contains(&decay),
            "lr * weight_decay",
            decay,
            "0 <= lr * weight_decay <= 1, else the decay changes signs",
        )?;
        check(
            self.grad_scale.is_finite(),
            "grad_scale",
            self.grad_scale,
            "a finite number; stop or skip the step when the gradient norm is not finite",
        )?;
        check(self.step >= 1, "step", self.step as f64, "step >= 1, updates count from one")
    }

    /// `1 - lr * weight_decay`: what a step multiplies the parameter by.
    pub(crate) fn decay(&self) -> f64 {
        1.0 - self.lr * self.weight_decay
    }
}

#[cfg(test)]
mod tests;
