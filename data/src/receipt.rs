//! Receipts: which documents a step saw, and which steps saw a document.
//!
//! Both are recomputed from the order, in time that does not grow with the run.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::PathBuf;

use crate::error::Result;
use crate::loader::Loader;
use crate::mixture::Draw;
use crate::packing::Segment;
use crate::source::Origin;

/// A row of a micro-batch and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowReceipt {
    /// Row in the micro-batch, from 0.
    pub row: usize,
    /// Name of the source; `data` where there is only one.
    pub source: String,
    /// How often the source was gone through before, from 0.
    pub epoch: u64,
    /// What stands in the row, left to right; the rest, if there is any, is padding.
    pub pieces: Vec<PieceReceipt>,
}

/// A stretch of a document in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceReceipt {
    /// Columns of the row, of `0..S + 1`.
    pub columns: Range<usize>,
    /// Tokens of the source.
    pub tokens: Range<u64>,
    /// Document of the source, if it knows them.
    pub document: Option<u64>,
    /// The token file.
    pub file: PathBuf,
    /// Offset in it of the piece's first token.
    pub byte: u64,
    /// The record that the document was made from, if that is known.
    pub origin: Option<Origin>,
}

/// One use of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The step.
    pub step: u64,
    /// Micro-batch of the step.
    pub micro_batch: u64,
    /// Row of the micro-batch.
    pub row: usize,
    /// Tokens of the source that it shows of the document.
    pub tokens: Range<u64>,
}

impl Loader {
    /// What the rows of micro-batch `index` of step `step` hold. A rank's receipt is that of its
    /// micro-batches.
    ///
    /// # Errors
    /// Those of [`Loader::micro_batch`].
    pub fn receipt(&self, step: u64, index: u64) -> Result<Vec<RowReceipt>> {
        let first_sample = self.first_sample(step, index)?;
        let rows = 0..self.config().micro_batch_size;
        rows.map(|row| self.row_receipt(row, self.mixture().draw(first_sample + row as u64)?))
            .collect()
    }

    fn row_receipt(&self, row: usize, draw: Draw) -> Result<RowReceipt> {
        let member = self.member(draw);
        let (mut pieces, mut column) = (Vec::new(), 0);
        for Segment { tokens, document } in self.documents_of_row(draw)? {
            let end = column + (tokens.end - tokens.start) as usize;
            let place = member.part().file.place(tokens.start);
            let origin = match document {
                Some(document) => member.part().file.origin(document)?,
                None => None,
            };
            let (file, byte) = (place.file, place.byte);
            pieces.push(PieceReceipt {
                columns: column..end,
                tokens,
                document,
                file,
                byte,
                origin,
            });
            column = end;
        }
        let (source, epoch) = (member.name.clone(), member.order.epoch(draw.sample));
        Ok(RowReceipt { row, source, epoch, pieces })
    }

    /// The segments of a row, cut at documents wherever those are known.
    fn documents_of_row(&self, draw: Draw) -> Result<Vec<Segment>> {
        let segments = self.segments(draw)?;
        if self.member(draw).part().file.num_documents().is_none() {
            return Ok(segments);
        }
        let layout = self.layout(draw.source);
        Ok(segments.into_iter().flat_map(|segment| layout.by_document(segment.tokens)).collect())
    }

    /// In which of `steps`, and where in them, a document of a source was used, in order.
    ///
    /// # Errors
    /// [`crate::MixtureError::UnknownSource`]; [`crate::SourceError::NoDocuments`] and
    /// [`crate::SourceError::NoSuchDocument`].
    pub fn seen(&self, source: &str, document: u64, steps: Range<u64>) -> Result<Vec<Sighting>> {
        let member = self.mixture().member(source)?;
        let span = member.part().file.document(document)?;
        let range = &member.part().range;
        let tokens = span.start.max(range.start)..span.end.min(range.end);
        let index = self.mixture().names().position(|name| name == source);
        let source = index.expect("the member was found by this name");
        let num_samples = self.mixture().counts(steps.end)[source];
        let mut sightings = Vec::new();
        if tokens.start >= tokens.end || num_samples == 0 {
            return Ok(sightings);
        }
        let num_windows = member.order.num_windows();
        for epoch in 0..=(num_samples - 1) / num_windows {
            let (phase, permutation) = member.order.epoch_order(epoch);
            for window in self.layout(source).candidates(phase, &tokens) {
                let sample = epoch * num_windows + permutation.index_of(window);
                let draw = Draw { source, sample };
                if let Some(sample) = self.mixture().sample_of(draw) {
                    self.sightings_in_row(sample, draw, (&tokens, &steps), &mut sightings)?;
                }
            }
        }
        sightings.sort_by_key(|sighting| {
            (sighting.step, sighting.micro_batch, sighting.row, sighting.tokens.start)
        });
        Ok(sightings)
    }

    /// Appends what the row that is sample `sample` of the run shows of `tokens`.
    fn sightings_in_row(
        &self,
        sample: u64,
        draw: Draw,
        (tokens, steps): (&Range<u64>, &Range<u64>),
        sightings: &mut Vec<Sighting>,
    ) -> Result<()> {
        let micro_batch_size = self.config().micro_batch_size as u64;
        let (micro_batch, row) = (sample / micro_batch_size, sample % micro_batch_size);
        let step = micro_batch / self.config().micro_batches_per_step;
        if !steps.contains(&step) {
            return Ok(());
        }
        for segment in self.segments(draw)? {
            let start = segment.tokens.start.max(tokens.start);
            let end = segment.tokens.end.min(tokens.end);
            if start < end {
                let micro_batch = micro_batch % self.config().micro_batches_per_step;
                let row = row as usize;
                sightings.push(Sighting { step, micro_batch, row, tokens: start..end });
            }
        }
        Ok(())
    }
}
