//! Where things lie in the tensors, and how the work is divided among chunks.

use super::AttentionShape;
use super::element::Element;
use super::operand::{BLOCK, Rows};
use std::iter::StepBy;
use std::ops::Range;

/// Every `n`th pair of a query head (among those that share a key head) and a row block.
///
/// Taking every `n`th gives each chunk early (cheap) and late (expensive) row blocks alike.
pub(super) type Units = StepBy<Range<usize>>;

/// [`AttentionShape`] with what follows from it.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub(super) sequence_length: usize,
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    /// `head_dim` rounded up to a multiple of 16.
    pub(super) padded_dim: usize,
    /// Multiplies `q . k`.
    pub(super) scale: f32,
    /// The same for scores in units of log2.
    pub(super) log2_scale: f32,
    /// The greatest number of positions that a query sees; `usize::MAX` for all.
    pub(super) window: usize,
}

impl Geometry {
    pub(super) fn new(shape: &AttentionShape) -> Self {
        Self {
            sequence_length: shape.sequence_length,
            num_heads: shape.num_heads,
            num_kv_heads: shape.num_kv_heads,
            head_dim: shape.head_dim,
            padded_dim: shape.head_dim.next_multiple_of(16),
            scale: shape.scale,
            log2_scale: shape.scale * std::f32::consts::LOG2_E,
            window: shape.window.unwrap_or(usize::MAX),
        }
    }

    /// Blocks of a sequence; the last may be shorter.
    pub(super) fn num_blocks(&self) -> usize {
        self.sequence_length.div_ceil(BLOCK)
    }

    /// Query heads that share a key head.
    pub(super) fn group_size(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// The units of part `part` of `num_parts`.
    pub(super) fn units(&self, part: usize, num_parts: usize) -> Units {
        (part..self.group_size() * self.num_blocks()).step_by(num_parts)
    }

    /// Which query head of its group, and which row block, a unit is.
    pub(super) fn unit(&self, unit: usize) -> (usize, usize) {
        (unit / self.num_blocks(), unit % self.num_blocks())
    }

    /// Elements of a position of `qkv`.
    pub(super) fn qkv_width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// The first element of slot `slot` (query heads, then key heads, then value heads) of position
    /// `position` in `qkv`.
    pub(super) fn qkv_start(&self, sequence: usize, position: usize, slot: usize) -> usize {
        (sequence * self.sequence_length + position) * self.qkv_width() + slot * self.head_dim
    }

    /// The slot of key head `kv_head`.
    pub(super) fn key_slot(&self, kv_head: usize) -> usize {
        self.num_heads + kv_head
    }

    /// The slot of value head `kv_head`.
    pub(super) fn value_slot(&self, kv_head: usize) -> usize {
        self.num_heads + self.num_kv_heads + kv_head
    }

    /// Slot `slot` of one sequence of `qkv`.
    pub(super) fn slot<'a, E: Element>(
        &self,
        qkv: &'a [E],
        sequence: usize,
        slot: usize,
    ) -> Rows<'a, E> {
        Rows {
            data: &qkv[self.qkv_start(sequence, 0, slot)..],
            stride: self.qkv_width(),
            len: self.sequence_length,
            head_dim: self.head_dim,
        }
    }

    /// The first element of head `head` of a position of `out`.
    pub(super) fn out_start(&self, sequence: usize, position: usize, head: usize) -> usize {
        ((sequence * self.sequence_length + position) * self.num_heads + head) * self.head_dim
    }

    /// Head `head` of one sequence of `out` or its gradient.
    pub(super) fn out_rows<'a, E: Element>(
        &self,
        out: &'a [E],
        sequence: usize,
        head: usize,
    ) -> Rows<'a, E> {
        Rows {
            data: &out[self.out_start(sequence, 0, head)..],
            stride: self.num_heads * self.head_dim,
            len: self.sequence_length,
            head_dim: self.head_dim,
        }
    }

    /// Where the logarithmic sums of one head begin.
    pub(super) fn lse_start(&self, sequence: usize, head: usize) -> usize {
        (sequence * self.num_heads + head) * self.sequence_length
    }
}
