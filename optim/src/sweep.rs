//! The one pass over memory that element-wise rules share.
//!
//! The loops index plain slices cut to one length, and each slice is its own parameter: that is
//! what lets the compiler drop the bounds checks, know that nothing overlaps, and vectorize.

use crate::dispatch::{Kernel, SimdLevel};
use crate::elements::{Checked, Working};
use crate::real::Real;
use crate::state::{Column, QUANTIZED_BLOCK_ELEMENTS};
use half::bf16;

/// An element-wise rule with its numbers of one step, rounded to `T`.
pub(crate) trait ElementRule<T: Real, const STATES: usize>: Copy {
    /// The new parameter and state of one element. Implementations are `#[inline(always)]`, use
    /// only the operations of [`Real`], and do not branch.
    fn element(self, master: T, grad: T, state: [T; STATES]) -> (T, [T; STATES]);
}

/// Updates every element at a vector level.
pub(crate) fn sweep<T, R, const STATES: usize>(
    level: SimdLevel,
    rule: R,
    elements: Checked<T, STATES>,
) where
    T: Real,
    R: Pass<T, STATES>,
{
    level.run(Sweep { rule, elements });
}

/// A rule and what it is to update.
struct Sweep<'a, T: Real, R, const STATES: usize> {
    rule: R,
    elements: Checked<'a, T, STATES>,
}

impl<T: Real, R: Pass<T, STATES>, const STATES: usize> Kernel for Sweep<'_, T, R, STATES> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Checked { master, grad, mut state, mut working, first, rounding } = self.elements;
        if let Some(state) = all_values(&mut state) {
            return self.rule.pass(master, grad, state, working);
        }
        // States that are not numbers of type `T` go through buffers of one block, which stay in
        // the nearest cache.
        let mut block = [[T::ZERO; QUANTIZED_BLOCK_ELEMENTS]; STATES];
        let mut random = [0; QUANTIZED_BLOCK_ELEMENTS];
        let mut start = 0;
        while start < master.len() {
            let into_block = (first + start) % QUANTIZED_BLOCK_ELEMENTS;
            let end = master.len().min(start + QUANTIZED_BLOCK_ELEMENTS - into_block);
            let range = start..end;
            for (column, values) in state.iter().zip(&mut block) {
                column.load(range.clone(), values);
            }
            let values = block.each_mut().map(|values| &mut values[..end - start]);
            let copy = working.range(range.clone());
            self.rule.pass(&mut master[range.clone()], &grad[range.clone()], values, copy);
            if state.iter().any(|column| matches!(column, Column::Bf16(_))) {
                rounding.fill(first + start, &mut random[..end - start]);
            }
            for (i, (column, values)) in state.iter_mut().zip(&block).enumerate() {
                column.store(range.clone(), values, &random, 16 * i as u32);
            }
            start = end;
        }
    }
}

/// The slices of states that are all of type `T`; then they need no conversion.
#[inline(always)]
fn all_values<'a, T: Real, const STATES: usize>(
    state: &'a mut [Column<'_, T>; STATES],
) -> Option<[&'a mut [T]; STATES]> {
    if !state.iter().all(|column| matches!(column, Column::Values(_))) {
        return None;
    }
    Some(state.each_mut().map(|column| match column {
        Column::Values(values) => &mut **values,
        _ => unreachable!("all are values"),
    }))
}

/// The loop of an [`ElementRule`] over buffers of one length.
pub(crate) trait Pass<T: Real, const STATES: usize>: Copy {
    /// Implementations are `#[inline(always)]`.
    fn pass(self, master: &mut [T], grad: &[T], state: [&mut [T]; STATES], working: Working);
}

impl<T: Real, R: ElementRule<T, 1>> Pass<T, 1> for R {
    #[inline(always)]
    fn pass(self, master: &mut [T], grad: &[T], [first]: [&mut [T]; 1], working: Working) {
        match working {
            Working::None => one_state::<T, R, false>(self, master, grad, first, &mut []),
            Working::Bf16(copy) => one_state::<T, R, true>(self, master, grad, first, copy),
        }
    }
}

impl<T: Real, R: ElementRule<T, 2>> Pass<T, 2> for R {
    #[inline(always)]
    fn pass(self, master: &mut [T], grad: &[T], [first, second]: [&mut [T]; 2], working: Working) {
        match working {
            Working::None => two_states::<T, R, false>(self, master, grad, first, second, &mut []),
            Working::Bf16(copy) => {
                two_states::<T, R, true>(self, master, grad, first, second, copy);
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
