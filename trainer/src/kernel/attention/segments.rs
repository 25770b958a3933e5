//! Where packed sequences are cut: attention does not reach across the start of a segment.

use super::operand::BLOCK;

/// The segments (documents, as a rule) of every sequence of a batch.
///
/// Two numbers say all that a block of queries must know: where the segment of each key ends, and
/// where that of a block's first query starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    batch: usize,
    sequence_length: usize,
    /// `[B, blocks * BLOCK]`: one past the last position of the segment of each position.
    ends: Vec<u32>,
    /// `[B, blocks]`: where the segment of a block's first position starts.
    block_starts: Vec<u32>,
}

impl Segments {
    /// The segments of `batch` sequences of `sequence_length` positions that begin at `starts`,
    /// ascending indices into `[B, T]` flattened. Each sequence begins one whether it is listed or
    /// not.
    ///
    /// # Panics
    /// If `starts` do not rise or one is outside the batch.
    #[must_use]
    pub fn new(batch: usize, sequence_length: usize, starts: &[u32]) -> Self {
        assert!(sequence_length > 0, "a sequence has positions");
        assert!(starts.windows(2).all(|pair| pair[0] < pair[1]), "the starts of segments rise");
        let num_positions = batch * sequence_length;
        assert!(starts.last().is_none_or(|&last| (last as usize) < num_positions), "in the batch");
        let num_blocks = sequence_length.div_ceil(BLOCK);
        let mut segments = Self {
            batch,
            sequence_length,
            ends: Vec::with_capacity(batch * num_blocks * BLOCK),
            block_starts: Vec::with_capacity(batch * num_blocks),
        };
        let mut starts = starts.iter().map(|&start| start as usize).peekable();
        for sequence in 0..batch {
            let (first, end) = (sequence * sequence_length, (sequence + 1) * sequence_length);
            let mut cuts = vec![0];
            while let Some(start) = starts.next_if(|&start| start < end) {
                if start > first {
                    cuts.push((start - first) as u32);
                }
            }
            segments.push(&cuts, num_blocks);
        }
        segments
    }

    /// Appends a sequence whose segments start at `cuts`, the first at 0.
    fn push(&mut self, cuts: &[u32], num_blocks: usize) {
        let length = self.sequence_length as u32;
        let ends = cuts.iter().skip(1).copied().chain([length]);
        for (&start, end) in cuts.iter().zip(ends) {
            self.ends.extend((start..end).map(|_| end));
        }
        // Positions past the sequence pad its last block; no query of the sequence sees them.
        let padding = num_blocks * BLOCK - self.sequence_length;
        self.ends.extend(std::iter::repeat_n(length, padding));
        for block in 0..num_blocks {
            let position = (block * BLOCK) as u32;
            let segment = cuts.partition_point(|&cut| cut <= position) - 1;
            self.block_starts.push(cuts[segment]);
        }
    }

    /// Whether these are the segments of a batch of this shape.
    pub(super) fn fit(&self, batch: usize, sequence_length: usize) -> bool {
        (self.batch, self.sequence_length) == (batch, sequence_length)
    }

    /// `[blocks * BLOCK]` ends of the segments of one sequence's positions.
    pub(super) fn ends(&self, sequence: usize) -> &[u32] {
        let len = self.ends.len() / self.batch;
        &self.ends[sequence * len..][..len]
    }

    /// `[blocks]` starts of the segments of one sequence's blocks.
    pub(super) fn block_starts(&self, sequence: usize) -> &[u32] {
        let len = self.block_starts.len() / self.batch;
        &self.block_starts[sequence * len..][..len]
    }
}
