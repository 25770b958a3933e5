//! Validation batches: the windows of a range from first to last, the same at each evaluation.

#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::loader::{read_segments, read_windows};
use crate::packing::cut_at_documents;
use crate::source::Source;
use crate::split::check_range;

/// Reads a range in sequential windows that share no target.
///
/// Window `w` holds tokens `w * S` to `w * S + S` inclusive, so each token but the first is
/// predicted once. With `N` tokens there are `floor((N - 1) / S)` whole windows; those beyond the
/// last whole batch, and the tokens beyond the last whole window, are left out: fewer than
/// `(B + 1) * S` tokens in all.
#[derive(Clone, Debug)]
pub struct Validation {
    file: Source,
    range: Range<u64>,
    sequence_length: usize,
    micro_batch_size: usize,
    num_batches: u64,
    is_cut: bool,
}

impl Validation {
    /// A reader over the tokens `range` of `file`, in batches of `micro_batch_size` windows.
    ///
    /// # Errors
    /// [`Error::Zero`] if a size is 0, [`Error::OutsideFile`] if the range is not in the file,
    /// [`Error::TooFewValidationTokens`] if there is no whole batch.
    pub fn new(
        file: Source,
        range: Range<u64>,
        sequence_length: usize,
        micro_batch_size: usize,
    ) -> Result<Self> {
        for (key, value) in
            [("sequence_length", sequence_length), ("micro_batch_size", micro_batch_size)]
        {
            if value == 0 {
                return Err(Error::Zero { key });
            }
        }
        check_range(&file, &range)?;
        let num_tokens = range.end - range.start;
        let num_windows = num_tokens.saturating_sub(1) / sequence_length as u64;
        let num_batches = num_windows / micro_batch_size as u64;
        if num_batches == 0 {
            return Err(Error::TooFewValidationTokens {
                num_tokens,
                micro_batch_size: micro_batch_size as u64,
                sequence_length: sequence_length as u64,
            });
        }
        Ok(Self { file, range, sequence_length, micro_batch_size, num_batches, is_cut: false })
    }

    /// The same windows cut into segments where documents begin, as training with
    /// [`crate::Packing::ContiguousByDocument`] has them: the first token of a document is no target.
    ///
    /// # Errors
    /// [`crate::SourceError::NoDocuments`] if it is not known where documents begin.
    pub fn cut_at_documents(mut self) -> Result<Self> {
        self.file.need_documents("validation by documents")?;
        self.is_cut = true;
        Ok(self)
    }

    /// Whole batches in the range; at least 1.
    pub fn num_batches(&self) -> u64 {
        self.num_batches
    }

    /// Batch `index`, from 0: windows `index * B` to `index * B + B - 1`.
    ///
    /// # Errors
    /// [`Error::NoSuchBatch`] if `index >= num_batches`, [`Error::StoredTokenId`] if the file is
    /// damaged.
    pub fn batch(&self, index: u64) -> Result<Batch> {
        if index >= self.num_batches {
            let count = self.num_batches;
            return Err(Error::NoSuchBatch { what: "validation batch", index, count });
        }
        let first_window = index * self.micro_batch_size as u64;
        let starts =
            (first_window..).map(|window| self.range.start + window * self.sequence_length as u64);
        let (batch_size, sequence_length) = (self.micro_batch_size, self.sequence_length);
        if !self.is_cut {
            return read_windows(&self.file, starts, batch_size, sequence_length);
        }
        let starts: Vec<u64> = starts.take(batch_size).collect();
        read_segments(batch_size, sequence_length, |row| {
            let window = starts[row]..starts[row] + sequence_length as u64 + 1;
            Ok((cut_at_documents(&self.file, &self.range, window), &self.file))
        })
    }
}
