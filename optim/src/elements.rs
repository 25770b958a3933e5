//! What one update reads and writes: buffers cut with one range, and the numbers of the step.

use crate::error::{Error, Result};
use crate::real::Real;
use crate::rounding::Rounding;
use crate::state::{self, Column, QUANTIZED_BLOCK_ELEMENTS, StateSlice, StateSpec};
use half::bf16;
use std::ops::Range;

/// Where the rounded copy goes that the model computes with.
#[derive(Debug)]
pub enum Working<'a> {
    /// The model computes with the master itself, or the caller makes the copy.
    None,
    /// `[n]` bf16, rounded to nearest even in the same pass over memory.
    Bf16(&'a mut [bf16]),
}

impl Working<'_> {
    /// The part of one block.
    #[inline(always)]
    pub(crate) fn range(&mut self, range: Range<usize>) -> Working<'_> {
        match self {
            Self::None => Working::None,
            Self::Bf16(copy) => Working::Bf16(&mut copy[range]),
        }
    }
}

/// One range of one parameter, on the CPU: `n` elements.
///
/// A caller with several threads cuts the range with [`Elements::split_at`] and updates the pieces
/// in parallel: the bits do not depend on the cuts, which for quantized states lie between blocks.
#[derive(Debug)]
pub struct Elements<'a, T: Real> {
    /// `[n]` master parameters; read and written.
    pub master: &'a mut [T],
    /// `[n]` gradient before `grad_scale`; read only.
    pub grad: &'a [T],
    /// One buffer for each of [`crate::Rule::state_specs`], in that order; read and written. Before
    /// the first step each holds [`crate::StateKind::start`].
    pub state: Vec<StateSlice<'a, T>>,
    /// The model's rounded copy; written.
    pub working: Working<'a>,
    /// Index of the range's first element within its parameter: blocks and random bits are counted
    /// from the parameter's beginning.
    pub first: usize,
}

impl<'a, T: Real> Elements<'a, T> {
    /// Cuts into elements `0..mid` and `mid..n`.
    ///
    /// Panics if `mid` is beyond any buffer, or with quantized states within a block.
    pub fn split_at(self, mid: usize) -> (Self, Self) {
        assert!(
            mid == self.master.len() || !self.cuts_block(mid),
            "element {} of a parameter is within a block of {QUANTIZED_BLOCK_ELEMENTS}, whose \
             elements share one scale; cut between blocks, or drop a tail with truncate",
            self.first + mid
        );
        let (master, master_tail) = self.master.split_at_mut(mid);
        let (grad, grad_tail) = self.grad.split_at(mid);
        let (state, state_tail) = self.state.into_iter().map(|s| s.split_at(mid)).unzip();
        let (working, working_tail) = match self.working {
            Working::None => (Working::None, Working::None),
            Working::Bf16(copy) => {
                let (copy, copy_tail) = copy.split_at_mut(mid);
                (Working::Bf16(copy), Working::Bf16(copy_tail))
            }
        };
        let head = Elements { master, grad, state, working, first: self.first };
        let tail = Elements {
            master: master_tail,
            grad: grad_tail,
            state: state_tail,
            working: working_tail,
            first: self.first + mid,
        };
        (head, tail)
    }

    /// Keeps elements `0..len`, such as a parameter without the padding behind it; `len` may lie
    /// within a block. Panics if `len` is beyond any buffer.
    pub fn truncate(self, len: usize) -> Self {
        let working = match self.working {
            Working::None => Working::None,
            Working::Bf16(copy) => Working::Bf16(&mut copy[..len]),
        };
        Elements {
            master: &mut self.master[..len],
            grad: &self.grad[..len],
            state: self.state.into_iter().map(|s| s.split_at(len).0).collect(),
            working,
            first: self.first,
        }
    }

    /// Whether some state is quantized: which form of a quantized rule's states these are.
    pub(crate) fn has_codes(&self) -> bool {
        self.state.iter().any(|s| matches!(s, StateSlice::Codes(_)))
    }

    /// Whether element `at` and the one before it share a block of some state.
    fn cuts_block(&self, at: usize) -> bool {
        let quantized = self.state.iter().any(|s| matches!(s, StateSlice::BlockScale(_)));
        quantized && !(self.first + at).is_multiple_of(QUANTIZED_BLOCK_ELEMENTS)
    }

    /// The states as columns, once every length and storage was compared with what `rule` takes.
    pub(crate) fn checked<const STATES: usize>(
        self,
        rule: &'static str,
        specs: &[StateSpec],
        scalars: &Scalars,
    ) -> Result<Checked<'a, T, STATES>> {
        scalars.validate()?;
        let expected = self.master.len();
        let check = |buffer, found| {
            if found == expected { Ok(()) } else { Err(Error::Length { buffer, expected, found }) }
        };
        check("grad", self.grad.len())?;
        if let Working::Bf16(copy) = &self.working {
            check("working", copy.len())?;
        }
        if self.cuts_block(0) {
            return Err(Error::WithinBlock { first: self.first });
        }
        Ok(Checked {
            state: state::columns(rule, specs, self.state, expected)?,
            master: self.master,
            grad: self.grad,
            working: self.working,
            first: self.first,
            rounding: scalars.rounding(),
        })
    }
}

/// [`Elements`] whose buffers are known to fit together.
pub(crate) struct Checked<'a, T: Real, const STATES: usize> {
    pub(crate) master: &'a mut [T],
    pub(crate) grad: &'a [T],
    pub(crate) state: [Column<'a, T>; STATES],
    pub(crate) working: Working<'a>,
    pub(crate) first: usize,
    pub(crate) rounding: Rounding,
}

/// The numbers of one step before those of a group are folded in; see [`Scalars`] for each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepNumbers {
    /// The schedule's learning rate.
    pub lr: f64,
    /// Factor on each gradient element.
    pub grad_scale: f64,
    /// Number of this update, from **1**.
    pub step: u64,
    /// Weight of this step's iterate in schedule-free's average.
    pub averaging_weight: f64,
    /// Seed of the run and the parameter, for bf16 states.
    pub rounding_seed: u64,
}

/// The numbers of one step and group; `f64` whatever the elements are, each rounded once where it
/// is used.
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
    /// Number of this update, from **1**: the schedule's zero-based step plus one. For bias
    /// correction and random bits.
    pub step: u64,
    /// Weight of this step's iterate in schedule-free's average, in `(0, 1]`:
    /// [`crate::Schedule::averaging_weight`]. Other rules do not look at it.
    pub averaging_weight: f64,
    /// Seed of the run and the parameter, for bf16 states: with one seed for all, parameters round
    /// by the same random bits. Other states do not look at it.
    pub rounding_seed: u64,
}

impl Scalars {
    /// Where the random bits of this update come from.
    pub(crate) fn rounding(&self) -> Rounding {
        Rounding::new(self.rounding_seed, self.step)
    }

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
        check(self.step >= 1, "step", self.step as f64, "step >= 1, updates count from one")?;
        check(
            self.averaging_weight > 0.0 && self.averaging_weight <= 1.0,
            "averaging_weight",
            self.averaging_weight,
            "0 < averaging_weight <= 1, see Schedule::averaging_weight",
        )
    }

    /// `1 - lr * weight_decay`: what a step multiplies the parameter by.
    pub(crate) fn decay(&self) -> f64 {
        1.0 - self.lr * self.weight_decay
    }
}

#[cfg(test)]
mod tests;
