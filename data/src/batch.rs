//! A micro-batch as the trainer gets it.

/// Rows of tokens, each with the inputs and, one further, the targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids `[B, S + 1]`, row-major: inputs are columns `0..S`, targets columns `1..S + 1`.
    /// Padding is id 0.
    pub tokens: Vec<u32>,
    /// Rows, `B`.
    pub batch_size: usize,
    /// Tokens predicted per row, `S`.
    pub sequence_length: usize,
    /// Which inputs begin a segment, as indices into `[B, S]` flattened, ascending: the first of
    /// each row, each document start, and the start of padding. With `B * S` behind the last they
    /// are the cumulative lengths that variable-length attention takes. Positions count from 0 at
    /// each, and nothing attends across one.
    pub segment_starts: Vec<u32>,
    /// Which targets `[B, S]` count; `None` if all do. Those that do not are padding and the first
    /// tokens of segments.
    pub loss_mask: Option<Vec<bool>>,
}

impl Batch {
    /// Whole rows without padding, each one segment.
    pub(crate) fn of_whole_rows(
        tokens: Vec<u32>,
        batch_size: usize,
        sequence_length: usize,
    ) -> Self {
        let segment_starts = (0..batch_size).map(|row| (row * sequence_length) as u32).collect();
        Self { tokens, batch_size, sequence_length, segment_starts, loss_mask: None }
    }

    /// Targets that count: what a mean loss is divided by.
    pub fn num_targets(&self) -> usize {
        match &self.loss_mask {
            None => self.batch_size * self.sequence_length,
            Some(mask) => mask.iter().filter(|&&counts| counts).count(),
        }
    }

    /// Positions `[B, S]` of the inputs, counted from the start of each segment.
    pub fn position_ids(&self) -> Vec<u32> {
        let num_inputs = (self.batch_size * self.sequence_length) as u32;
        let ends = self.segment_starts.iter().skip(1).copied().chain([num_inputs]);
        let segments = self.segment_starts.iter().zip(ends);
        segments.flat_map(|(&start, end)| 0..end - start).collect()
    }
}
