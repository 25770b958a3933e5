//! Which keys a query sees, for whole blocks and lane by lane.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has the one contract stated at the trait Isa"
)]
#![allow(unsafe_code, reason = "vector intrinsics and raw loads")]

use super::isa::Isa;
use super::operand::BLOCK;
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

/// The blocks of keys that some query of block `row_block` sees.
#[inline(always)]
pub(super) fn visible_blocks(row_block: usize, window: usize) -> Range<usize> {
    let first = (row_block * BLOCK + 1).saturating_sub(window);
    first / BLOCK..row_block + 1
}

/// The mask of one block of queries against one block of keys: query `r` sees key `c` if
/// `c <= r < c + window`.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    first_row: usize,
    first_column: usize,
    window: usize,
    /// Whether the block lies on the diagonal.
    pub(super) is_diagonal: bool,
    /// Whether anything in the block is masked.
    is_needed: bool,
}

impl Mask {
    #[inline(always)]
    pub(super) fn new(row_block: usize, column_block: usize, window: usize) -> Self {
        let is_diagonal = row_block == column_block;
        let greatest_distance = (row_block - column_block) * BLOCK + BLOCK - 1;
        Self {
            first_row: row_block * BLOCK,
            first_column: column_block * BLOCK,
            window,
            is_diagonal,
            is_needed: is_diagonal || greatest_distance >= window,
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
        let end = column.saturating_add(self.window).saturating_sub(row).min(I::LANES);
        let from_start = I::load(STEPS.as_ptr().add(16 - start));
        let before_end = I::load(STEPS.as_ptr().add(32 - end));
        I::min(I::min(from_start, before_end), scores)
    }
}
