//! The nonlinearities of the MLP: SwiGLU on a fused gate and up projection, and GELU.
//!
//! Legend: N rows (tokens), F mlp. All arithmetic is in f32 and each result is rounded once.

use super::block::{Blocks, block, rows_per_block};
use super::dispatch::{Body, Level};
use super::element::Element;
use super::exp::exp;
use super::pool::Pool;

pub mod gelu;
#[cfg(test)]
mod tests;

/// The logistic function of `x` and of `-x`. Neither cancels; where that of `x` is 0, so that its
/// multiples are, that of `-x` is 0 too, and not 1.
#[inline(always)]
fn sigmoid_pair(x: f32) -> (f32, f32) {
    let exp = exp(-x);
    let at_x = 1.0 / (1.0 + exp);
    // An infinite one would be multiplied by the 0 of `at_x`.
    let finite = if exp < f32::MAX { exp } else { f32::MAX };
    (at_x, finite * at_x)
}

/// SwiGLU, `act = silu(gate) * up` with `silu(g) = g * sigmoid(g)`.
///
/// # Shapes
/// - `gate_up`: `[N, 2 F]`, in each row first the gate, then up
/// - `act`: `[N, F]`, overwritten
///
/// # Panics
/// If a length does not fit the others.
///
/// # References
/// Shazeer 2020, arXiv:2002.05202, equation 6.
pub fn swiglu_forward<E: Element>(
    pool: &Pool,
    gate_up: &[E],
    intermediate_size: usize,
    act: &mut [E],
) {
    check_rows(gate_up, act, intermediate_size);
    let act_len = rows_per_block(2 * intermediate_size) * intermediate_size;
    let act = Blocks::new(act, act_len);
    let level = Level::detect();
    pool.for_each(act.num_blocks(), |index| {
        level.run(SwigluForward {
            gate_up: block(gate_up, index, 2 * act_len),
            intermediate_size,
            act: act.take(index),
        });
    });
}

/// The gradient of [`swiglu_forward`], in place.
///
/// # Shapes
/// - `gate_up`: `[N, 2 F]`, the input of the forward pass; its gradient afterwards
/// - `d_act`: `[N, F]`
///
/// # Panics
/// If a length does not fit the others.
pub fn swiglu_backward<E: Element>(
    pool: &Pool,
    gate_up: &mut [E],
    d_act: &[E],
    intermediate_size: usize,
) {
    check_rows(gate_up, d_act, intermediate_size);
    let act_len = rows_per_block(2 * intermediate_size) * intermediate_size;
    let gate_up = Blocks::new(gate_up, 2 * act_len);
    let level = Level::detect();
    pool.for_each(gate_up.num_blocks(), |index| {
        level.run(SwigluBackward {
            gate_up: gate_up.take(index),
            d_act: block(d_act, index, act_len),
            intermediate_size,
        });
    });
}

fn check_rows<E>(gate_up: &[E], act: &[E], intermediate_size: usize) {
    assert!(intermediate_size > 0, "a row has at least one element");
    assert!(act.len().is_multiple_of(intermediate_size), "whole rows of intermediate_size");
    assert_eq!(gate_up.len(), 2 * act.len(), "gate_up has two elements for each of act");
}

/// A block of rows of the forward pass.
struct SwigluForward<'a, E> {
    gate_up: &'a [E],
    intermediate_size: usize,
    act: &'a mut [E],
}

impl<E: Element> Body for SwigluForward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        let gate_up = self.gate_up.chunks_exact(2 * self.intermediate_size);
        for (gate_up, act) in gate_up.zip(self.act.chunks_exact_mut(self.intermediate_size)) {
            let (gate, up) = gate_up.split_at(self.intermediate_size);
            for ((act, gate), up) in act.iter_mut().zip(gate).zip(up) {
                let gate = gate.to_f32();
                *act = E::from_f32(gate * sigmoid_pair(gate).0 * up.to_f32());
            }
        }
    }
}

/// A block of rows of the backward pass.
struct SwigluBackward<'a, E> {
    gate_up: &'a mut [E],
    d_act: &'a [E],
    intermediate_size: usize,
}

impl<E: Element> Body for SwigluBackward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        let size = self.intermediate_size;
        let d_rows = self.d_act.chunks_exact(size);
        for (gate_up, d_act) in self.gate_up.chunks_exact_mut(2 * size).zip(d_rows) {
            let (gate, up) = gate_up.split_at_mut(size);
            swiglu_backward_row(gate, up, d_act);
        }
    }
}

/// A row of the backward pass. A function of its own, because the compiler knows of the parameters of
/// a function that they do not overlap, and of more than a few slices it cannot find out.
#[inline(always)]
fn swiglu_backward_row<E: Element>(gates: &mut [E], ups: &mut [E], d_act: &[E]) {
    let len = gates.len();
    let (ups, d_act) = (&mut ups[..len], &d_act[..len]);
    for i in 0..len {
        let (gate, up, d_act) = (gates[i].to_f32(), ups[i].to_f32(), d_act[i].to_f32());
        let (sigmoid, complement) = sigmoid_pair(gate);
        gates[i] = E::from_f32(d_act * up * (sigmoid * (1.0 + gate * complement)));
        ups[i] = E::from_f32(d_act * (gate * sigmoid));
    }
}
