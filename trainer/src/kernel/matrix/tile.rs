//! The product of some rows of a left operand and one panel of a right one, in registers.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: AVX-512 BF16, and pointers that are valid for what is read"
)]
#![allow(unsafe_code, reason = "vector intrinsics and raw loads")]

use std::arch::x86_64::*;
use std::mem::transmute;

/// Lanes of a vector of f32.
pub(super) const LANES: usize = 16;
/// Vectors of a panel's width: with [`TILE_ROWS`] rows, sums and operands just fit the 32 registers.
pub(super) const TILE_VECTORS: usize = 3;
/// Columns of a panel.
pub(super) const PANEL: usize = LANES * TILE_VECTORS;
/// Rows whose sums are in registers at a time.
pub(super) const TILE_ROWS: usize = 8;

/// Sums of a tile of `M` rows and `N` vectors.
pub(super) type Sums<const M: usize, const N: usize> = [[__m512; N]; M];

/// Where the words (pairs of neighbors along `K`) of a tile's rows are.
#[derive(Clone, Copy)]
pub(super) struct LeftRows {
    /// The first word of the first row.
    pub(super) words: *const u8,
    /// Bytes from one row to the next.
    pub(super) row_bytes: usize,
    /// Bytes from one word of a row to the next.
    pub(super) word_bytes: usize,
}

/// Sums of nothing.
#[inline(always)]
pub(super) unsafe fn zeros<const M: usize, const N: usize>() -> Sums<M, N> {
    [[_mm512_setzero_ps(); N]; M]
}

/// Partial sums from `from` `[M, PANEL]`.
#[inline(always)]
pub(super) unsafe fn load<const M: usize, const N: usize>(from: *const f32) -> Sums<M, N> {
    let mut sums = zeros::<M, N>();
    for (m, sums) in sums.iter_mut().enumerate() {
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_loadu_ps(from.add(m * PANEL + n * LANES));
        }
    }
    sums
}

/// Partial sums to `to` `[M, PANEL]`.
#[inline(always)]
pub(super) unsafe fn store<const M: usize, const N: usize>(to: *mut f32, sums: Sums<M, N>) {
    for (m, sums) in sums.iter().enumerate() {
        for (n, sum) in sums.iter().enumerate() {
            _mm512_storeu_ps(to.add(m * PANEL + n * LANES), *sum);
        }
    }
}

/// `sums + left right` over `num_words` words; `right` is `[num_words, PANEL]`.
#[inline(always)]
pub(super) unsafe fn add_product<const M: usize, const N: usize>(
    mut sums: Sums<M, N>,
    left: LeftRows,
    right: *const u32,
    num_words: usize,
) -> Sums<M, N> {
    let (mut words, mut row) = (left.words, right);
    for _ in 0..num_words {
        let mut vectors = [_mm512_setzero_ps(); N];
        for (n, vector) in vectors.iter_mut().enumerate() {
            *vector = _mm512_loadu_ps(row.add(n * LANES).cast());
        }
        for (m, sums) in sums.iter_mut().enumerate() {
            let word = words.add(m * left.row_bytes).cast::<i32>().read_unaligned();
            let factor = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(word));
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = _mm512_dpbf16_ps(*sum, factor, transmute::<__m512, __m512bh>(vector));
            }
        }
        row = row.add(PANEL);
        words = words.add(left.word_bytes);
    }
    sums
}
