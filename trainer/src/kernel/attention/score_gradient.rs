//! Weights and gradients of the scores of one pair of blocks, never leaving the first cache.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has the one contract stated at the trait Isa"
)]
#![allow(unsafe_code, reason = "vector intrinsics and raw loads")]

use super::isa::{Isa, exp2};
use super::mask::Mask;
use super::operand::BLOCK;
use super::product::{Panel, tile};

/// Keys (columns) of a tile.
const TILE_COLUMNS: usize = 4;

/// One pair of blocks, computed [`TILE_COLUMNS`] keys at a time.
pub(super) struct GradientStrips<'a> {
    /// `[C, W]`
    pub(super) keys: Panel,
    pub(super) values: Panel,
    /// `[W, R]`
    pub(super) queries: Panel,
    pub(super) d_out: Panel,
    pub(super) num_words: usize,
    /// From `q . k` to scores in units of log2.
    pub(super) factor: f32,
    pub(super) mask: Mask<'a>,
    /// `[R]`
    pub(super) minus_lse: *const f32,
    pub(super) delta: *const f32,
    /// `[C, R / P]`
    pub(super) weights: *mut u32,
    /// `[C, R / P]`; not written where `P` is 1, because it equals `ds_right` then.
    pub(super) ds_left: *mut u32,
    /// `[C / P, R]`
    pub(super) ds_right: *mut u32,
}

impl GradientStrips<'_> {
    /// Writes `weights` and `ds_left`, but for the vectors above the diagonal, and all of `ds_right`.
    ///
    /// # Safety
    /// As for [`Isa`]; the pointers and panels are as their docs say.
    #[inline(always)]
    pub(super) unsafe fn run<I: Isa>(&self) {
        for column in (0..BLOCK).step_by(TILE_COLUMNS) {
            let mut vector = self.mask.first_vector::<I>(column);
            self.clear::<I>(column, vector);
            while vector < BLOCK / I::LANES {
                let count = I::TILE_VECTORS.min(BLOCK / I::LANES - vector);
                match count {
                    4 => self.strip::<I, 4>(column, vector),
                    3 => self.strip::<I, 3>(column, vector),
                    2 => self.strip::<I, 2>(column, vector),
                    _ => self.strip::<I, 1>(column, vector),
                }
                vector += count;
            }
        }
    }

    /// Zeros in `ds_right` for the vectors before `end`, which are above the diagonal.
    #[inline(always)]
    unsafe fn clear<I: Isa>(&self, column: usize, end: usize) {
        for lane in (0..end * I::LANES).step_by(I::LANES) {
            for column in (column..column + TILE_COLUMNS).step_by(2) {
                let to = self.ds_right.add(column / I::PAIR * BLOCK + lane);
                I::store_across(to, BLOCK, I::splat(0.0), I::splat(0.0));
            }
        }
    }

    #[inline(always)]
    unsafe fn strip<I: Isa, const N: usize>(&self, column: usize, vector: usize) {
        let first_lane = vector * I::LANES;
        let mut weights = [[I::splat(0.0); N]; TILE_COLUMNS];
        let (keys, queries) = (self.keys.at(column, 0), self.queries.at(0, first_lane));
        tile::<I, TILE_COLUMNS, N>(&mut weights, keys, queries, self.num_words);
        let factor = I::splat(self.factor);
        for n in 0..N {
            let lane = first_lane + n * I::LANES;
            let minus_lse = I::load(self.minus_lse.add(lane));
            for (m, weights) in weights.iter_mut().enumerate() {
                let exponent = I::mul_add(weights[n], factor, minus_lse);
                weights[n] = exp2::<I>(self.mask.apply::<I>(exponent, column + m, lane));
                let at = (column + m) * (BLOCK / I::PAIR) + lane / I::PAIR;
                I::store_along(self.weights.add(at), weights[n]);
            }
        }
        let mut gradients = [[I::splat(0.0); N]; TILE_COLUMNS];
        let (values, d_out) = (self.values.at(column, 0), self.d_out.at(0, first_lane));
        tile::<I, TILE_COLUMNS, N>(&mut gradients, values, d_out, self.num_words);
        for n in 0..N {
            let lane = first_lane + n * I::LANES;
            let delta = I::load(self.delta.add(lane));
            for (m, gradients) in gradients.iter_mut().enumerate() {
                gradients[n] = I::mul(weights[m][n], I::sub(gradients[n], delta));
                if I::PAIR == 2 {
                    let at = (column + m) * (BLOCK / I::PAIR) + lane / I::PAIR;
                    I::store_along(self.ds_left.add(at), gradients[n]);
                }
            }
            for m in (0..TILE_COLUMNS).step_by(2) {
                let to = self.ds_right.add((column + m) / I::PAIR * BLOCK + lane);
                I::store_across(to, BLOCK, gradients[m][n], gradients[m + 1][n]);
            }
        }
    }
}
