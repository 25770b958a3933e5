//! Both normalizations against f64, forward and backward.

use super::super::dispatch::Level;
use super::super::testing::assert_same_at_all_levels;
use super::super::testing::{Tolerance, assert_close, assert_same, exact, sample};
use super::row::{BackwardBlock, ForwardBlock, Gradients, Output, Saved, Scale};
use super::*;
use half::bf16;

const EPS: f32 = 1e-5;
/// More than one block and one partial sum, and a last one that is not full.
const NUM_ROWS: usize = 37;
const SIZES: [usize; 5] = [1, 7, 64, 576, 1000];

/// What one forward and one backward pass write.
#[derive(Default)]
struct Results<E> {
    y: Vec<E>,
    mean: Vec<f32>,
    rstd: Vec<f32>,
    dx: Vec<E>,
    d_weight: Vec<f32>,
    d_bias: Vec<f32>,
}

/// What they read.
struct Inputs<E> {
    x: Vec<E>,
    dy: Vec<E>,
    d_residual: Vec<E>,
    weight: Vec<E>,
    bias: Vec<E>,
}

impl<E: Tolerance> Inputs<E> {
    fn new(hidden_size: usize) -> Self {
        let len = NUM_ROWS * hidden_size;
        Self {
            x: sample(len, 2.0),
            dy: sample::<E>(len + 1, 1.0)[1..].to_vec(),
            d_residual: sample::<E>(len + 2, 1.0)[2..].to_vec(),
            weight: sample(hidden_size, 1.0),
            bias: sample::<E>(hidden_size + 1, 1.0)[1..].to_vec(),
        }
    }

    fn upstream(&self) -> Upstream<'_, E> {
        Upstream { dy: &self.dy, d_residual: Some(&self.d_residual) }
    }

    fn empty(&self, centered: bool) -> Results<E> {
        // Gradients start at 1, to see that they are added to.
        Results {
            y: vec![E::default(); self.x.len()],
            mean: vec![0.0; if centered { NUM_ROWS } else { 0 }],
            rstd: vec![0.0; NUM_ROWS],
            dx: vec![E::default(); self.x.len()],
            d_weight: vec![1.0; self.weight.len()],
            d_bias: vec![1.0; if centered { self.weight.len() } else { 0 }],
        }
    }

    fn rms(&self, num_threads: usize) -> Results<E> {
        let pool = Pool::new(num_threads);
        let norm = RmsNorm { weight: &self.weight, eps: EPS };
        let mut r = self.empty(false);
        norm.forward(&pool, &self.x, &mut r.y, &mut r.rstd);
        let saved = RmsNormSaved { x: &self.x, rstd: &r.rstd };
        norm.backward(&pool, self.upstream(), saved, &mut r.dx, &mut r.d_weight);
        r
    }

    fn layer(&self, num_threads: usize) -> Results<E> {
        let pool = Pool::new(num_threads);
        let norm = LayerNorm { weight: &self.weight, bias: &self.bias, eps: EPS };
        let mut r = self.empty(true);
        let statistics = LayerNormStatistics { mean: &mut r.mean, rstd: &mut r.rstd };
        norm.forward(&pool, &self.x, &mut r.y, statistics);
        let saved = LayerNormSaved { x: &self.x, mean: &r.mean, rstd: &r.rstd };
        let gradients =
            LayerNormGradients { dx: &mut r.dx, d_weight: &mut r.d_weight, d_bias: &mut r.d_bias };
        norm.backward(&pool, self.upstream(), saved, gradients);
        r
    }

    /// Everything in f64.
    fn reference(&self, centered: bool) -> Results64 {
        let d = self.weight.len();
        let (x, dy, around) = (exact(&self.x), exact(&self.dy), exact(&self.d_residual));
        let (weight, bias) = (exact(&self.weight), exact(&self.bias));
        let ones = || vec![1.0; d];
        let mut r = Results64 { d_weight: ones(), d_bias: ones(), ..Results64::default() };
        for row in 0..NUM_ROWS {
            let at = |i: usize| row * d + i;
            let average = |f: &dyn Fn(usize) -> f64| (0..d).map(f).sum::<f64>() / d as f64;
            let mean = if centered { average(&|i| x[at(i)]) } else { 0.0 };
            let square = average(&|i| (x[at(i)] - mean).powi(2));
            let rstd = 1.0 / (square + f64::from(EPS)).sqrt();
            let h = |i: usize| (x[at(i)] - mean) * rstd;
            let g = |i: usize| dy[at(i)] * weight[i];
            let along = average(&|i| g(i) * h(i));
            let offset = if centered { average(&g) } else { 0.0 };
            for i in 0..d {
                r.y.push(h(i) * weight[i] + if centered { bias[i] } else { 0.0 });
                r.dx.push(rstd * (g(i) - offset - h(i) * along) + around[at(i)]);
                r.d_weight[i] += dy[at(i)] * h(i);
                r.d_bias[i] += dy[at(i)];
            }
            r.largest_rstd = r.largest_rstd.max(rstd);
        }
        r
    }
}

#[derive(Default)]
struct Results64 {
    y: Vec<f64>,
    dx: Vec<f64>,
    d_weight: Vec<f64>,
    d_bias: Vec<f64>,
    largest_rstd: f64,
}

fn check<E: Tolerance>(hidden_size: usize) {
    let inputs = Inputs::<E>::new(hidden_size);
    for centered in [false, true] {
        let run = |threads| if centered { inputs.layer(threads) } else { inputs.rms(threads) };
        let (found, expected) = (run(1), inputs.reference(centered));
        let what = format!("centered {centered}, hidden_size {hidden_size}");
        // A term of dx is rstd * g, and terms cancel where the row is short.
        assert_close(&found.dx, &expected.dx, 4.0 * expected.largest_rstd, &format!("dx, {what}"));
        assert_close(&found.y, &expected.y, 4.0, &format!("y, {what}"));
        let rows = NUM_ROWS as f64;
        assert_close(&found.d_weight, &expected.d_weight, rows, &format!("d_weight, {what}"));
        if centered {
            assert_close(&found.d_bias, &expected.d_bias, rows, &format!("d_bias, {what}"));
        }
        let two = run(2);
        assert_same(&two.y, &found.y, &what);
        assert_same(&two.rstd, &found.rstd, &what);
        assert_same(&two.mean, &found.mean, &what);
        assert_same(&two.dx, &found.dx, &what);
        assert_same(&two.d_weight, &found.d_weight, &what);
        assert_same(&two.d_bias, &found.d_bias, &what);
    }
}

#[test]
fn agrees_with_f64_on_any_number_of_threads() {
    for hidden_size in SIZES {
        check::<f32>(hidden_size);
        check::<bf16>(hidden_size);
    }
}

#[test]
fn without_a_residual_nothing_is_added() {
    let inputs = Inputs::<f32>::new(64);
    let with = inputs.rms(1);
    let mut without = inputs.empty(false);
    let upstream = Upstream { dy: &inputs.dy, d_residual: None };
    let saved = RmsNormSaved { x: &inputs.x, rstd: &with.rstd };
    let norm = RmsNorm { weight: &inputs.weight, eps: EPS };
    norm.backward(&Pool::new(1), upstream, saved, &mut without.dx, &mut without.d_weight);
    for (around, dx) in inputs.d_residual.iter().zip(&mut without.dx) {
        *dx += around;
    }
    assert_same(&with.dx, &without.dx, "dx");
}

fn run_blocks<E: Tolerance>(inputs: &Inputs<E>, level: Level) -> Vec<f32> {
    let mut r = inputs.empty(true);
    level.run(ForwardBlock {
        scale: Scale { weight: &inputs.weight, bias: Some(&inputs.bias) },
        eps: EPS,
        x: &inputs.x,
        output: Output { y: &mut r.y, mean: Some(&mut r.mean), rstd: &mut r.rstd },
    });
    level.run(BackwardBlock {
        weight: &inputs.weight,
        upstream: inputs.upstream(),
        saved: Saved { x: &inputs.x, mean: Some(&r.mean), rstd: &r.rstd },
        gradients: Gradients {
            dx: &mut r.dx,
            d_weight: &mut r.d_weight,
            d_bias: Some(&mut r.d_bias),
        },
    });
    let widen = |values: &[E]| values.iter().map(|v| v.to_f32()).collect::<Vec<_>>();
    [widen(&r.y), widen(&r.dx), r.mean, r.rstd, r.d_weight, r.d_bias].concat()
}

#[test]
fn all_levels_give_the_same_bits() {
    for hidden_size in SIZES {
        let inputs = Inputs::<bf16>::new(hidden_size);
        assert_same_at_all_levels("bf16", |level| run_blocks(&inputs, level));
        let inputs = Inputs::<f32>::new(hidden_size);
        assert_same_at_all_levels("f32", |level| run_blocks(&inputs, level));
    }
}
