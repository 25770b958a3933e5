//! SwiGLU and GELU against f64, forward and backward.

use super::super::testing::assert_same_at_all_levels;
use super::super::testing::{Tolerance, assert_close, assert_same, exact, sample};
use super::*;
use half::bf16;

const NUM_ROWS: usize = 53;
const SIZES: [usize; 5] = [1, 7, 64, 576, 1000];
/// Far into both tails.
const SCALE: f32 = 12.0;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Forward and backward on `num_threads`.
fn run_swiglu<E: Tolerance>(
    gate_up: &[E],
    d_act: &[E],
    size: usize,
    num_threads: usize,
) -> [Vec<E>; 2] {
    let pool = Pool::new(num_threads);
    let mut act = vec![E::default(); d_act.len()];
    let mut d_gate_up = gate_up.to_vec();
    swiglu_forward(&pool, gate_up, size, &mut act);
    swiglu_backward(&pool, &mut d_gate_up, d_act, size);
    [act, d_gate_up]
}

fn check_swiglu<E: Tolerance>(size: usize) {
    let gate_up = sample::<E>(NUM_ROWS * 2 * size, SCALE);
    let d_act = sample::<E>(NUM_ROWS * size, 1.0);
    let found = run_swiglu(&gate_up, &d_act, size, 1);
    let (wide, d_wide) = (exact(&gate_up), exact(&d_act));
    let (mut act, mut d_gate_up) = (vec![0.0; d_act.len()], vec![0.0; gate_up.len()]);
    for row in 0..NUM_ROWS {
        for i in 0..size {
            let (gate_at, act_at) = (2 * row * size + i, row * size + i);
            let (gate, up, d) = (wide[gate_at], wide[gate_at + size], d_wide[act_at]);
            let s = sigmoid(gate);
            act[act_at] = gate * s * up;
            d_gate_up[gate_at] = d * up * s * (1.0 + gate * sigmoid(-gate));
            d_gate_up[gate_at + size] = d * gate * s;
        }
    }
    // The derivative of silu has a zero, where its terms cancel.
    assert_close(&found[0], &act, 0.0, "act");
    assert_close(&found[1], &d_gate_up, f64::from(SCALE), "d_gate_up");
    for (two, one) in run_swiglu(&gate_up, &d_act, size, 2).iter().zip(&found) {
        assert_same(two, one, "threads");
    }
}

#[test]
fn swiglu_agrees_with_f64_on_any_number_of_threads() {
    for size in SIZES {
        check_swiglu::<f32>(size);
        check_swiglu::<bf16>(size);
    }
}

/// `(value, derivative)` at `x`.
fn gelu_reference(x: f64) -> (f64, f64) {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    let t = (c * (x + 0.044_715 * x.powi(3))).tanh();
    let inner = c * (1.0 + 3.0 * 0.044_715 * x * x);
    (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
}

fn check_gelu<E: Tolerance>() {
    // Several blocks; where 1 + tanh keeps enough of f64's digits.
    let (x, dy) = (sample::<E>(70_001, 5.0), sample::<E>(70_001, 1.0));
    let run = |num_threads| {
        let pool = Pool::new(num_threads);
        let (mut y, mut dx) = (vec![E::default(); x.len()], x.clone());
        gelu::forward(&pool, &x, &mut y);
        gelu::backward(&pool, &mut dx, &dy);
        (y, dx)
    };
    let (y, dx) = run(1);
    let reference: Vec<_> = exact(&x).iter().map(|x| gelu_reference(*x)).collect();
    let values: Vec<f64> = reference.iter().map(|r| r.0).collect();
    let gradients: Vec<f64> = reference.iter().zip(exact(&dy)).map(|(r, dy)| r.1 * dy).collect();
    assert_close(&y, &values, 1.0, "y");
    assert_close(&dx, &gradients, 1.0, "dx");
    let two = run(2);
    assert_same(&two.0, &y, "y");
    assert_same(&two.1, &dx, "dx");
}

#[test]
fn gelu_agrees_with_f64_on_any_number_of_threads() {
    check_gelu::<f32>();
    check_gelu::<bf16>();
}

#[test]
fn tails_neither_overflow_nor_vanish_early() {
    let pool = Pool::new(1);
    let x = [-1e4f32, -100.0, 100.0, 1e4];
    let (mut y, mut dx) = ([9.0f32; 4], x);
    gelu::forward(&pool, &x, &mut y);
    gelu::backward(&pool, &mut dx, &[1.0; 4]);
    assert_eq!(y, [0.0, 0.0, 100.0, 1e4]);
    assert_eq!(dx, [0.0, 0.0, 1.0, 1.0]);
}

fn swiglu_blocks<E: Tolerance>(size: usize) {
    let (gate_up, d_act) = (sample::<E>(6 * size, SCALE), sample::<E>(3 * size, 1.0));
    assert_same_at_all_levels("swiglu", |level| {
        let mut act = d_act.clone();
        let mut d_gate_up = gate_up.clone();
        let (gate_up, d_act, intermediate_size) = (&gate_up[..], &d_act[..], size);
        level.run(SwigluForward { gate_up, intermediate_size, act: &mut act });
        level.run(SwigluBackward { gate_up: &mut d_gate_up[..], d_act, intermediate_size });
        [act, d_gate_up].concat()
    });
}

#[test]
fn all_levels_give_the_same_bits() {
    for size in SIZES {
        swiglu_blocks::<f32>(size);
        swiglu_blocks::<bf16>(size);
        let x = sample::<f32>(size, SCALE);
        assert_same_at_all_levels("gelu", |level| gelu::blocks_at(level, &x));
    }
}
