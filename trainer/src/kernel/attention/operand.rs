//! Brings blocks of q, k, v and d_out into the layouts that the products read.
//!
//! `R` = [`BLOCK`] rows (positions of the sequence), `H` head dim padded to a multiple of 16, `P` =
//! [`Isa::PAIR`], `W = H / P` words a row. From one block of elements come four layouts:
//! - `along`: `[R, W]`, a row's words: left operand, sum over `H`
//! - `along` transposed: `[W, R]`: right operand, sum over `H`
//! - `across`: `[R / P, H]`: right operand, sum over `R`
//! - `across` transposed: `[H, R / P]`: left operand, sum over `R`
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has the one contract stated at the trait Isa"
)]
#![allow(unsafe_code, reason = "transposes with vector intrinsics")]

use super::element::Element;
use super::isa::Isa;

/// Positions that are treated together, both as rows (queries) and as columns (keys).
pub(super) const BLOCK: usize = 64;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// One head of one sequence inside a larger row-major tensor.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, E> {
    /// The tensor from the head's first element on.
    pub(super) data: &'a [E],
    /// Elements from one position to the next.
    pub(super) stride: usize,
    /// Positions.
    pub(super) len: usize,
    /// Elements of a position.
    pub(super) head_dim: usize,
}

impl<'a, E: Element> Rows<'a, E> {
    /// The elements of position `at`.
    #[inline(always)]
    pub(super) fn row(&self, at: usize) -> &'a [E] {
        &self.data[at * self.stride..][..self.head_dim]
    }

    /// How many positions block `block` has.
    #[inline(always)]
    pub(super) fn block_len(&self, block: usize) -> usize {
        BLOCK.min(self.len - block * BLOCK)
    }

    /// Block `block` as `along`, with zeros past the head dim and past the sequence.
    #[inline(always)]
    pub(super) fn pack_along<I: Isa>(&self, block: usize, along: &mut [u32]) {
        let width = along.len() / BLOCK;
        let (filled, empty) = along.split_at_mut(self.block_len(block) * width);
        for (at, words) in filled.chunks_exact_mut(width).enumerate() {
            E::write_words(self.row(block * BLOCK + at), I::PAIR, words);
        }
        empty.fill(0);
    }

    /// Asks for block `block`, if there is one, before it is packed: its rows lie so far apart that
    /// the processor does not guess the next one, and waiting for each took a tenth of the time.
    ///
    /// # Safety
    /// As for [`Isa`].
    #[inline(always)]
    pub(super) unsafe fn prefetch<I: Isa>(&self, block: usize) {
        for at in (block * BLOCK..self.len).take(BLOCK) {
            let row = self.row(at);
            // Up to and including the line of the last byte, wherever the first one lies.
            for offset in (0..size_of_val(row)).step_by(LINE_BYTES).chain([size_of_val(row) - 1]) {
                I::prefetch(row.as_ptr().cast::<u8>().wrapping_add(offset));
            }
        }
    }
}

/// Transposes `from` `[num_rows, num_words]` into `to` `[num_words, num_rows]`; both counts are
/// multiples of 8, and `num_rows` of [`Isa::LANES`].
///
/// # Safety
/// As for [`Isa`].
#[inline(always)]
pub(super) unsafe fn transpose<I: Isa>(from: &[u32], num_rows: usize, to: &mut [u32]) {
    let num_words = from.len() / num_rows;
    assert!(num_rows.is_multiple_of(I::LANES) && num_words.is_multiple_of(8));
    assert!(from.len() == num_rows * num_words && to.len() == from.len());
    for row in (0..num_rows).step_by(I::LANES) {
        for word in (0..num_words).step_by(8) {
            // In bounds: row + LANES <= num_rows and word + 8 <= num_words on both sides.
            let source = from.as_ptr().add(row * num_words + word);
            let target = to.as_mut_ptr().add(word * num_rows + row);
            I::transpose(source, num_words, target, num_rows);
        }
    }
}

/// `along` `[R, W]` to `across` `[R / P, H]`.
#[inline(always)]
pub(super) fn across<I: Isa>(along: &[u32], across: &mut [u32]) {
    if I::PAIR == 1 {
        across.copy_from_slice(along);
        return;
    }
    let width = along.len() / BLOCK;
    let pairs = along.chunks_exact(2 * width).zip(across.chunks_exact_mut(2 * width));
    for (rows, words) in pairs {
        let (even, odd) = rows.split_at(width);
        for ((&even, &odd), [low, high]) in even.iter().zip(odd).zip(words.as_chunks_mut::<2>().0) {
            *low = (even & 0xffff) | (odd << 16);
            *high = (even >> 16) | (odd & 0xffff_0000);
        }
    }
}

/// `along` transposed `[W, R]` to `across` transposed `[H, R / P]`.
#[inline(always)]
pub(super) fn across_transposed<I: Isa>(transposed: &[u32], across: &mut [u32]) {
    if I::PAIR == 1 {
        across.copy_from_slice(transposed);
        return;
    }
    let pairs = transposed.chunks_exact(BLOCK).zip(across.chunks_exact_mut(BLOCK));
    for (words, two_rows) in pairs {
        let (even, odd) = two_rows.split_at_mut(BLOCK / 2);
        for ((&[first, second], even), odd) in words.as_chunks::<2>().0.iter().zip(even).zip(odd) {
            *even = (first & 0xffff) | (second << 16);
            *odd = (first >> 16) | (second & 0xffff_0000);
        }
    }
}
