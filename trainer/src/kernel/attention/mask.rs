//! Which keys a query sees, for whole blocks and lane by lane.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has the one contract stated at the trait Isa"
)]
#![allow(unsafe_code, reason = "vector intrinsics and raw loads")]

use super::isa::Isa;
use super::operand::BLOCK;
use super::segments::Segments;
use std::ops::Range;

/// Lanes are masked by taking the minimum with a vector read from here, at an offset that puts the
/// step from masked to visible, or back, at the right lane.
static STEPS: [f32; 48] = {
    let mut steps = [f32::NEG_INFINITY; 48];
    let mut at = 16;
    while at < 32 {
        steps[at] = f32::INFINITY;
        at += 1;
    }
    steps
};

/// How far back the queries of one sequence see.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    window: usize,
    /// The ends of the keys' segments and the starts of the blocks' first segments, as
    /// [`Segments::ends`] and [`Segments::block_starts`] give them; `None` for one segment.
    cuts: Option<(&'a [u32], &'a [u32])>,
}

impl<'a> Sight<'a> {
    pub(super) fn new(window: usize, segments: Option<&'a Segments>, sequence: usize) -> Self {
        let cuts =
            |segments: &'a Segments| (segments.ends(sequence), segments.block_starts(sequence));
        Self { window, cuts: segments.map(cuts) }
    }

    /// The blocks of keys that some query of block `row_block` sees.
    #[inline(always)]
    pub(super) fn blocks(&self, row_block: usize) -> Range<usize> {
        let first = (row_block * BLOCK + 1).saturating_sub(self.window);
        // Of all queries of the block the first one sees farthest back.
        let start = self.cuts.map_or(0, |(_, block_starts)| block_starts[row_block] as usize);
        first.max(start) / BLOCK..row_block + 1
    }
}

/// The mask of one block of queries against one block of keys: query `r` sees key `c` if
/// `c <= r < c + window` and `r` is before the end of the segment of `c`.
#[derive(Clone, Copy)]
pub(super) struct Mask<'a> {
    first_row: usize,
    first_column: usize,
    window: usize,
    ends: Option<&'a [u32]>,
    /// Whether the block lies on the diagonal.
    pub(super) is_diagonal: bool,
    /// Whether anything in the block is masked.
    is_needed: bool,
}

impl<'a> Mask<'a> {
    #[inline(always)]
    pub(super) fn new(row_block: usize, column_block: usize, sight: Sight<'a>) -> Self {
        let is_diagonal = row_block == column_block;
        let greatest_distance = (row_block - column_block) * BLOCK + BLOCK - 1;
        let (first_row, first_column) = (row_block * BLOCK, column_block * BLOCK);
        let ends = sight.cuts.map(|(ends, _)| ends);
        // The ends rise, so that of the first key is the first of the block's.
        let is_cut = ends.is_some_and(|ends| (ends[first_column] as usize) < first_row + BLOCK);
        Self {
            first_row,
            first_column,
            window: sight.window,
            ends: ends.filter(|_| is_cut),
            is_diagonal,
            is_needed: is_diagonal || is_cut || greatest_distance >= sight.window,
        }
    }

    /// The first vector (of rows) in which column `column` of the block is not masked in all lanes.
    #[inline(always)]
    pub(super) fn first_vector<I: Isa>(&self, column: usize) -> usize {
        if self.is_diagonal { column / I::LANES } else { 0 }
    }

    /// `scores` of rows `lane..` with column `column`, -infinity where masked.
    ///
    /// # Safety
    /// As for [`Isa`].
    #[inline(always)]
    pub(super) unsafe fn apply<I: Isa>(&self, scores: I::V, column: usize, lane: usize) -> I::V {
        if !self.is_needed {
            return scores;
        }
        let (row, column) = (self.first_row + lane, self.first_column + column);
        // Lanes from `start` on and before `end` are visible.
        let start = column.saturating_sub(row).min(I::LANES);
        let end = column.saturating_add(self.window);
        let end = self.ends.map_or(end, |ends| end.min(ends[column] as usize));
        let end = end.saturating_sub(row).min(I::LANES);
        let from_start = I::load(STEPS.as_ptr().add(16 - start));
        let before_end = I::load(STEPS.as_ptr().add(32 - end));
        I::min(I::min(from_start, before_end), scores)
    }
}
