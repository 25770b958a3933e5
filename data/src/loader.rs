//! Training batches: micro-batch `index` of step `step`, as a pure function of the seed.

#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::mixture::{Draw, Member, Mixture};
use crate::order::Order;
use crate::packing::{Layout, Packing, Segment};
use crate::source::Source;
use crate::split::{Corpus, check_range};

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

impl LoaderConfig {
    pub(crate) fn check(&self) -> Result<()> {
        if self.micro_batch_size == 0 {
            return Err(Error::Zero { key: "micro_batch_size" });
        }
        if self.micro_batches_per_step == 0 {
            return Err(Error::Zero { key: "micro_batches_per_step" });
        }
        Ok(())
    }

    /// Rows of a step, over all ranks.
    pub(crate) fn samples_per_step(&self) -> u64 {
        self.micro_batches_per_step.saturating_mul(self.micro_batch_size as u64)
    }
}

/// Gives training batches. Cloning is cheap and shares the files.
#[derive(Clone, Debug)]
pub struct Loader {
    mixture: Arc<Mixture>,
    packing: Packing,
    config: LoaderConfig,
}

impl Loader {
    /// A loader over the tokens `range` of one source, in contiguous windows.
    ///
    /// # Errors
    /// [`Error::Zero`] if a number of `config` other than the seed is 0, [`Error::OutsideFile`] if
    /// the range is not in the file, [`Error::TooFewTokens`] if it holds no window.
    pub fn new(file: impl Into<Source>, range: Range<u64>, config: LoaderConfig) -> Result<Self> {
        let file = file.into();
        config.check()?;
        check_range(&file, &range)?;
        let mixture = Arc::new(Mixture::of_one(Corpus::train_only(file, range), &config)?);
        Ok(Self { mixture, packing: Packing::Contiguous, config })
    }

    /// A loader over a mixture, which was made with the same `config`.
    ///
    /// # Errors
    /// [`crate::SourceError::NoDocuments`] if the packing needs documents that a source does not
    /// know.
    pub fn of_mixture(
        mixture: Arc<Mixture>,
        packing: Packing,
        config: LoaderConfig,
    ) -> Result<Self> {
        config.check()?;
        if packing.needs_documents() {
            for source in mixture.sources() {
                source.part().file.need_documents("this packing")?;
            }
        }
        Ok(Self { mixture, packing, config })
    }

    /// The source this loader reads; the first of a mixture.
    pub fn path(&self) -> &Path {
        self.mixture.sources()[0].part().file.path()
    }

    /// The numbers this loader was made with.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// The order of the source's samples, for their number per epoch; of a mixture the first's.
    pub fn order(&self) -> &Order {
        &self.mixture.sources()[0].order
    }

    /// The sources and weights.
    pub fn mixture(&self) -> &Mixture {
        &self.mixture
    }

    /// Micro-batch `index`, from 0, of step `step`, from 0. Its row `r` is sample
    /// `(step * micro_batches_per_step + index) * micro_batch_size + r` of the mixture, for one
    /// source of the [`Order`]: the same tokens whichever rank asks, and whenever it does.
    ///
    /// # Errors
    /// [`Error::NoSuchBatch`] if `index >= micro_batches_per_step`, [`Error::StepTooLarge`] if
    /// the sample number exceeds 64 bits, [`crate::MixtureError::Exhausted`] if the sources have
    /// no data for the step, [`Error::StoredTokenId`] if a file is damaged.
    pub fn micro_batch(&self, step: u64, index: u64) -> Result<Batch> {
        let first_sample = self.first_sample(step, index)?;
        let LoaderConfig { sequence_length, micro_batch_size, .. } = self.config;
        if self.packing == Packing::Contiguous {
            let row_tokens = sequence_length + 1;
            let mut tokens = vec![0; micro_batch_size * row_tokens];
            for (row, sample) in tokens.chunks_exact_mut(row_tokens).zip(first_sample..) {
                let draw = self.mixture.draw(sample)?;
                let source = self.member(draw);
                let start = source.part().range.start + source.order.start(draw.sample);
                source.part().file.read(start, row)?;
            }
            return Ok(Batch::of_whole_rows(tokens, micro_batch_size, sequence_length));
        }
        read_segments(micro_batch_size, sequence_length, |row| {
            let draw = self.mixture.draw(first_sample + row as u64)?;
            Ok((self.segments(draw)?, &self.member(draw).part().file))
        })
    }

    pub(crate) fn member(&self, draw: Draw) -> &Member {
        &self.mixture.sources()[draw.source]
    }

    pub(crate) fn layout(&self, source: usize) -> Layout<'_> {
        let member = &self.mixture.sources()[source];
        Layout { part: member.part(), order: &member.order, packing: self.packing }
    }

    /// The segments of a row.
    pub(crate) fn segments(&self, draw: Draw) -> Result<Vec<Segment>> {
        self.layout(draw.source).row(draw.sample)
    }

    /// Refuses an index that no step has.
    pub(crate) fn check_index(&self, index: u64) -> Result<()> {
        let count = self.config.micro_batches_per_step;
        if index < count {
            return Ok(());
        }
        Err(Error::NoSuchBatch { what: "micro-batch", index, count })
    }

    pub(crate) fn first_sample(&self, step: u64, index: u64) -> Result<u64> {
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

/// Reads rows of segments, each from the source beside them.
pub(crate) fn read_segments<'a>(
    batch_size: usize,
    sequence_length: usize,
    row_of: impl Fn(usize) -> Result<(Vec<Segment>, &'a Source)>,
) -> Result<Batch> {
    let mut tokens = vec![0; batch_size * (sequence_length + 1)];
    let mut segment_starts = Vec::new();
    let mut loss_mask = vec![false; batch_size * sequence_length];
    let masks = loss_mask.chunks_exact_mut(sequence_length);
    for (number, (row, mask)) in tokens.chunks_exact_mut(sequence_length + 1).zip(masks).enumerate()
    {
        let (segments, source) = row_of(number)?;
        let starts = fill(row, mask, &segments, source)?;
        let first = number * sequence_length;
        segment_starts.extend(starts.into_iter().map(|start| (first + start) as u32));
    }
    let loss_mask = Some(loss_mask);
    Ok(Batch { tokens, batch_size, sequence_length, segment_starts, loss_mask })
}

/// Reads segments into a row of `S + 1` tokens and marks in `mask` the `S` targets that count;
/// returns the inputs that begin a segment or padding.
fn fill(
    row: &mut [u32],
    mask: &mut [bool],
    segments: &[Segment],
    source: &Source,
) -> Result<Vec<usize>> {
    let (mut starts, mut column) = (Vec::new(), 0);
    for segment in segments {
        let end = column + (segment.tokens.end - segment.tokens.start) as usize;
        source.read(segment.tokens.start, &mut row[column..end])?;
        // Target column c is predicted from input column c - 1, where its mask stands.
        mask[column..end - 1].fill(true);
        starts.push(column);
        column = end;
    }
    if column < row.len() {
        starts.push(column);
    }
    // The last column holds a target only.
    starts.retain(|&start| start < mask.len());
    Ok(starts)
}

/// Reads one window of `sequence_length + 1` tokens from each of `batch_size` starts.
pub(crate) fn read_windows(
    file: &Source,
    starts: impl Iterator<Item = u64>,
    batch_size: usize,
    sequence_length: usize,
) -> Result<Batch> {
    let window_tokens = sequence_length + 1;
    let mut tokens = vec![0; batch_size * window_tokens];
    for (window, start) in tokens.chunks_exact_mut(window_tokens).zip(starts) {
        file.read(start, window)?;
    }
    Ok(Batch::of_whole_rows(tokens, batch_size, sequence_length))
}
