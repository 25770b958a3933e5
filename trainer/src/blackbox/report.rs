//! What a black box says of its step.

use std::path::PathBuf;

use grove_data::{Loader, PieceReceipt, RowReceipt};
use serde::{Deserialize, Deserializer, Serialize};

use super::norms::ParamNorms;
use crate::error::Error;
use crate::metrics::Trip;

/// All numbers of a black box. What is not finite is `null` in JSON and reads as NaN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The step, from 1.
    pub step: u64,
    /// Its data step, from 0: past what was left out; see [`crate::corpus::place`].
    pub data_step: u64,
    /// What was left out before it, counted in the same way.
    pub excluded_data_steps: Vec<u64>,
    /// How it went wrong.
    pub trip: Trip,
    /// Mean loss of its tokens.
    #[serde(deserialize_with = "nan_from_null")]
    pub loss: f64,
    /// L2 norm of its mean gradient.
    #[serde(deserialize_with = "nan_from_null")]
    pub grad_norm: f64,
    /// Tokens of all micro-batches.
    pub num_tokens: u64,
    /// Losses of the steps before it, oldest first, if spikes are looked for.
    pub past_losses: Vec<f64>,
    /// Gradient norms of the same.
    pub past_grad_norms: Vec<f64>,
    /// The first micro-batch whose loss is not finite.
    pub first_bad_micro_batch: Option<usize>,
    /// The parameter that went bad first; see [`super::first_not_finite`].
    pub first_bad_parameter: Option<String>,
    /// By their number in the step.
    pub micro_batches: Vec<MicroBatch>,
    /// In the order of the model.
    pub parameters: Vec<ParamNorms>,
}

/// One micro-batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MicroBatch {
    /// Summed loss of its tokens.
    #[serde(deserialize_with = "nan_from_null")]
    pub loss_sum: f64,
    /// The inputs, of `[B, S]` flattened, that begin a segment.
    pub segment_starts: Vec<u32>,
    /// The targets, of `[B, S]` flattened, that do not count.
    pub masked_targets: Vec<usize>,
    /// Where its tokens came from.
    pub rows: Vec<Row>,
}

/// One row of a micro-batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the source.
    pub source: String,
    /// How often the source was gone through before.
    pub epoch: u64,
    /// From left to right.
    pub pieces: Vec<Piece>,
}

/// A stretch of one document in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// First column, and the one behind the last.
    pub columns: [usize; 2],
    /// First token of the source, and the one behind the last.
    pub tokens: [u64; 2],
    /// Document of the source, if it knows them.
    pub document: Option<u64>,
    /// The token file.
    pub file: PathBuf,
    /// Offset in it of the first token.
    pub byte: u64,
    /// The file and record that the document was made from, if they are known.
    pub origin: Option<(PathBuf, u64)>,
}

impl MicroBatch {
    /// The micro-batch at a place of the loader, with its loss.
    ///
    /// # Errors
    /// If the data cannot be read.
    pub fn trace(loader: &Loader, (step, index): (u64, u64), loss_sum: f64) -> Result<Self, Error> {
        let batch = loader.micro_batch(step, index)?;
        let mask = batch.loss_mask.unwrap_or_default();
        let masked = mask.iter().enumerate().filter(|&(_, &counts)| !counts);
        let rows = loader.receipt(step, index)?;
        Ok(Self {
            loss_sum,
            segment_starts: batch.segment_starts,
            masked_targets: masked.map(|(target, _)| target).collect(),
            rows: rows.into_iter().map(Row::from).collect(),
        })
    }
}

impl From<RowReceipt> for Row {
    fn from(row: RowReceipt) -> Self {
        let RowReceipt { source, epoch, pieces, .. } = row;
        Self { source, epoch, pieces: pieces.into_iter().map(Piece::from).collect() }
    }
}

impl From<PieceReceipt> for Piece {
    fn from(piece: PieceReceipt) -> Self {
        Self {
            columns: [piece.columns.start, piece.columns.end],
            tokens: [piece.tokens.start, piece.tokens.end],
            document: piece.document,
            file: piece.file,
            byte: piece.byte,
            origin: piece.origin.map(|origin| (origin.input, origin.record)),
        }
    }
}

fn nan_from_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
