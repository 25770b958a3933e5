//! Training batches: micro-batch `index` of step `step`, as a pure function of the seed.

#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::order::Order;
use crate::split::check_range;
use crate::token_file::TokenFile;

/// Windows of tokens, each with the inputs and, one further, the targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids `[B, S + 1]`, row-major: inputs are columns `0..S`, targets columns `1..S + 1`.
    pub tokens: Vec<u32>,
    /// Rows, `B`.
    pub batch_size: usize,
    /// Tokens predicted per row, `S`.
    pub sequence_length: usize,
}

/// The numbers that fix which sample goes where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Tokens predicted per window, `S`.
    pub sequence_length: usize,
    /// Windows per micro-batch, `B`.
    pub micro_batch_size: usize,
    /// Micro-batches per optimizer step, over all ranks.
    pub micro_batches_per_step: u64,
    /// Seed of the data order.
    pub seed: u64,
}

/// Gives training batches. Cloning is cheap and shares the file.
#[derive(Clone, Debug)]
pub struct Loader {
    file: Arc<TokenFile>,
    range: Range<u64>,
    config: LoaderConfig,
    order: Order,
}

impl Loader {
    /// A loader over the tokens `range` of `file`.
    ///
    /// # Errors
    /// [`Error::Zero`] if a number of `config` other than the seed is 0, [`Error::OutsideFile`] if
    /// the range is not in the file, [`Error::TooFewTokens`] if it holds no window.
    pub fn new(file: Arc<TokenFile>, range: Range<u64>, config: LoaderConfig) -> Result<Self> {
        if config.micro_batch_size == 0 {
            return Err(Error::Zero { key: "micro_batch_size" });
        }
        if config.micro_batches_per_step == 0 {
            return Err(Error::Zero { key: "micro_batches_per_step" });
        }
        check_range(&file, &range)?;
        let num_tokens = range.end - range.start;
        let order = Order::new(num_tokens, config.sequence_length as u64, config.seed)?;
        Ok(Self { file, range, config, order })
    }

    /// The file this loader reads.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The numbers this loader was made with.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// The order of the samples, for their number per epoch.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// Micro-batch `index`, from 0, of step `step`, from 0. Its row `r` is sample
    /// `(step * micro_batches_per_step + index) * micro_batch_size + r` of the [`Order`]: the
    /// same tokens whichever rank asks, and whenever it does.
    ///
    /// # Errors
    /// [`Error::NoSuchBatch`] if `index >= micro_batches_per_step`, [`Error::StepTooLarge`] if
    /// the sample number exceeds 64 bits, [`Error::StoredTokenId`] if the file is damaged.
    pub fn micro_batch(&self, step: u64, index: u64) -> Result<Batch> {
        let first_sample = self.first_sample(step, index)?;
        let LoaderConfig { sequence_length, micro_batch_size, .. } = self.config;
        let starts = (first_sample..).map(|sample| self.range.start + self.order.start(sample));
        read_windows(&self.file, starts, micro_batch_size, sequence_length)
    }

    /// Refuses an index that no step has.
    pub(crate) fn check_index(&self, index: u64) -> Result<()> {
        let count = self.config.micro_batches_per_step;
        if index < count {
            return Ok(());
        }
        Err(Error::NoSuchBatch { what: "micro-batch", index, count })
    }

    fn first_sample(&self, step: u64, index: u64) -> Result<u64> {
        self.check_index(index)?;
        let micro_batches_per_step = self.config.micro_batches_per_step;
        let micro_batch_size = self.config.micro_batch_size as u64;
        let first_sample = || {
            let micro_batch = step.checked_mul(micro_batches_per_step)?.checked_add(index)?;
            let first_sample = micro_batch.checked_mul(micro_batch_size)?;
            first_sample.checked_add(micro_batch_size).map(|_| first_sample)
        };
        first_sample().ok_or(Error::StepTooLarge { step, micro_batches_per_step, micro_batch_size })
    }
}

/// Reads one window of `sequence_length + 1` tokens from each of `batch_size` starts.
pub(crate) fn read_windows(
    file: &TokenFile,
    starts: impl Iterator<Item = u64>,
    batch_size: usize,
    sequence_length: usize,
) -> Result<Batch> {
    let window_tokens = sequence_length + 1;
    let mut tokens = vec![0; batch_size * window_tokens];
    for (window, start) in tokens.chunks_exact_mut(window_tokens).zip(starts) {
        file.read(start, window)?;
    }
    Ok(Batch { tokens, batch_size, sequence_length })
}
