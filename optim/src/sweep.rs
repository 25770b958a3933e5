//! The one pass over memory that element-wise rules share.
//!
//! The loops index plain slices cut to one length, and each slice is its own parameter: that is
//! what lets the compiler drop the bounds checks, know that nothing overlaps, and vectorize.

use crate::dispatch::{Kernel, SimdLevel};
use crate::elements::{Checked, Working};
use crate::real::Real;
use half::bf16;

/// An element-wise rule with its numbers of one step, rounded to `T`.
pub(crate) trait ElementRule<T: Real, const STATES: usize>: Copy {
    /// The new parameter and state of one element. Implementations are `#[inline(always)]`, use
    /// only the operations of [`Real`], and do not branch.
    fn element(self, master: T, grad: T, state: [T; STATES]) -> (T, [T; STATES]);
}

/// Updates every element at the widest vector level of this processor.
pub(crate) fn sweep<'a, T, R, const STATES: usize>(rule: R, elements: Checked<'a, T, STATES>)
where
    T: Real,
    Sweep<'a, T, R, STATES>: Kernel<Output = ()>,
{
    sweep_at(SimdLevel::detect(), rule, elements);
}

/// [`sweep`] at a given level.
pub(crate) fn sweep_at<'a, T, R, const STATES: usize>(
    level: SimdLevel,
    rule: R,
    elements: Checked<'a, T, STATES>,
) where
    T: Real,
    Sweep<'a, T, R, STATES>: Kernel<Output = ()>,
{
    level.run(Sweep { rule, elements });
}

/// A rule and what it is to update; a [`Kernel`] for one and for two states.
pub(crate) struct Sweep<'a, T: Real, R, const STATES: usize> {
    rule: R,
    elements: Checked<'a, T, STATES>,
}

impl<T: Real, R: ElementRule<T, 1>> Kernel for Sweep<'_, T, R, 1> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Checked { master, grad, state: [first], working } = self.elements;
        match working {
            Working::None => one_state::<T, R, false>(self.rule, master, grad, first, &mut []),
            Working::Bf16(copy) => one_state::<T, R, true>(self.rule, master, grad, first, copy),
        }
    }
}

impl<T: Real, R: ElementRule<T, 2>> Kernel for Sweep<'_, T, R, 2> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Checked { master, grad, state: [first, second], working } = self.elements;
        match working {
            Working::None => {
                two_states::<T, R, false>(self.rule, master, grad, first, second, &mut []);
            }
            Working::Bf16(copy) => {
                two_states::<T, R, true>(self.rule, master, grad, first, second, copy);
            }
        }
    }
}

/// The loop of a rule with one state; writes `copy` only if `COPIES`.
#[inline(always)]
fn one_state<T: Real, R: ElementRule<T, 1>, const COPIES: bool>(
    rule: R,
    master: &mut [T],
    grad: &[T],
    first: &mut [T],
    copy: &mut [bf16],
) {
    let n = master.len();
    let (grad, first) = (&grad[..n], &mut first[..n]);
    let copy = if COPIES { &mut copy[..n] } else { copy };
    for i in 0..n {
        let (updated, [new_first]) = rule.element(master[i], grad[i], [first[i]]);
        master[i] = updated;
        first[i] = new_first;
        if COPIES {
            copy[i] = updated.to_bf16();
        }
    }
}

/// The loop of a rule with two states; writes `copy` only if `COPIES`.
#[inline(always)]
fn two_states<T: Real, R: ElementRule<T, 2>, const COPIES: bool>(
    rule: R,
    master: &mut [T],
    grad: &[T],
    first: &mut [T],
    second: &mut [T],
    copy: &mut [bf16],
) {
    let n = master.len();
    let (grad, first, second) = (&grad[..n], &mut first[..n], &mut second[..n]);
    let copy = if COPIES { &mut copy[..n] } else { copy };
    for i in 0..n {
        let (updated, [new_first, new_second]) =
            rule.element(master[i], grad[i], [first[i], second[i]]);
        master[i] = updated;
        first[i] = new_first;
        second[i] = new_second;
        if COPIES {
            copy[i] = updated.to_bf16();
        }
    }
}

#[cfg(test)]
mod tests;
