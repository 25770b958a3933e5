//! Register-blocked matrix products of packed operands.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has the one contract stated at the trait Isa"
)]
#![allow(unsafe_code, reason = "vector intrinsics and raw loads")]

use super::isa::Isa;
use super::operand::BLOCK;

/// A packed operand: rows of words, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub(super) words: *const u32,
    pub(super) stride: usize,
}

impl Panel {
    /// The panel that begins `row` rows and `column` words further on.
    ///
    /// # Safety
    /// It must begin within the same buffer.
    #[inline(always)]
    pub(super) unsafe fn at(self, row: usize, column: usize) -> Self {
        Self { words: self.words.add(row * self.stride + column), stride: self.stride }
    }
}

/// `sums[m][n] += sum over k < num_words of left[m, k] . right[k, n]`, `n` counting vectors.
///
/// # Safety
/// As for [`Isa`]; `left` holds `M` rows of `num_words` words, `right` `num_words` rows of `N` vectors.
#[inline(always)]
pub(super) unsafe fn tile<I: Isa, const M: usize, const N: usize>(
    sums: &mut [[I::V; N]; M],
    left: Panel,
    right: Panel,
    num_words: usize,
) {
    for word in 0..num_words {
        let row = right.words.add(word * right.stride);
        let mut vectors = [I::splat(0.0); N];
        for (n, vector) in vectors.iter_mut().enumerate() {
            *vector = I::load(row.add(n * I::LANES).cast());
        }
        for (m, sums) in sums.iter_mut().enumerate() {
            let factor = I::splat_word(left.words.add(m * left.stride + word));
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = I::product(*sum, factor, vector);
            }
        }
    }
}

/// Which part of the summed dimension a product needs; the rest multiplies zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Span {
    /// All [`BLOCK`] positions.
    All,
    /// For row `m` of the result, the positions from `m` on.
    FromRow,
    /// For lane `n` of the result, the positions up to `n`.
    UpToLane,
}

/// A product over the [`BLOCK`] positions of a block, and where its result is added.
#[derive(Clone, Copy)]
pub(super) struct Accumulation {
    /// `[num_rows, >= num_lanes]` f32, row-major, `stride` apart.
    pub(super) sums: *mut f32,
    pub(super) stride: usize,
    /// A multiple of 16.
    pub(super) num_rows: usize,
    /// A multiple of 16.
    pub(super) num_lanes: usize,
    pub(super) span: Span,
    /// `num_lanes` factors for what is in `sums` before the addition; null for none.
    pub(super) lane_factors: *const f32,
}

impl Accumulation {
    /// `sums = sums * lane_factors + left . right`.
    ///
    /// # Safety
    /// As for [`Isa`]; `left` holds `num_rows` rows and `right` rows of `num_lanes`, over `BLOCK`
    /// positions; `sums` and `lane_factors` are as their docs say.
    #[inline(always)]
    pub(super) unsafe fn add<I: Isa>(&self, left: Panel, right: Panel) {
        let num_vectors = self.num_lanes / I::LANES;
        // With narrower tiles, more of them need only a part of the sum.
        let narrow = self.span == Span::UpToLane && I::TILE_VECTORS == 4;
        let width = if narrow { 2 } else { I::TILE_VECTORS };
        let mut vector = 0;
        while vector < num_vectors {
            let right = right.at(0, vector * I::LANES);
            let count = width.min(num_vectors - vector);
            // As many sums as hide the latency of a product in the registers that there are.
            match (count, I::TILE_VECTORS) {
                (4, _) => self.strip::<I, 4, 4>(vector, left, right),
                (3, _) => self.strip::<I, 4, 3>(vector, left, right),
                (2, 4) => self.strip::<I, 8, 2>(vector, left, right),
                (2, _) => self.strip::<I, 4, 2>(vector, left, right),
                (_, 4) => self.strip::<I, 16, 1>(vector, left, right),
                _ => self.strip::<I, 8, 1>(vector, left, right),
            }
            vector += count;
        }
    }

    /// The result's `N` vectors from `vector` on, in all rows.
    #[inline(always)]
    unsafe fn strip<I: Isa, const M: usize, const N: usize>(
        &self,
        vector: usize,
        left: Panel,
        right: Panel,
    ) {
        let num_words = BLOCK / I::PAIR;
        let lane = vector * I::LANES;
        for row in (0..self.num_rows).step_by(M) {
            let (from, to) = match self.span {
                Span::All => (0, num_words),
                Span::FromRow => (row / I::PAIR, num_words),
                Span::UpToLane => (0, (lane + N * I::LANES) / I::PAIR),
            };
            let target = self.sums.add(row * self.stride + lane);
            let mut sums = [[I::splat(0.0); N]; M];
            for (m, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = I::load(target.add(m * self.stride + n * I::LANES));
                    if !self.lane_factors.is_null() {
                        *sum = I::mul(*sum, I::load(self.lane_factors.add(lane + n * I::LANES)));
                    }
                }
            }
            tile::<I, M, N>(&mut sums, left.at(row, from), right.at(from, 0), to - from);
            for (m, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    I::store(target.add(m * self.stride + n * I::LANES), *sum);
                }
            }
        }
    }
}
