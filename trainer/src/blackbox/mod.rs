//! What is kept of a step that went wrong, in a folder of its own: its batch, where each of its
//! tokens came from, the size of every gradient and weight, and the plan.
//!
//! ```text
//! <run>/blackbox/step-00000057/
//!   report.json    numbers, norms by parameter, rows of the batch with files and offsets: [`Report`]
//!   batch.tokens   the rows [M * B, S + 1] one after the other, as a token file
//!   plan.toml      the plan
//! ```

mod norms;
mod report;

use std::fs;
use std::path::{Path, PathBuf};

use grove_data::{Batch, Loader, TokenFile, TokenWriter};

pub use norms::{ParamNorms, Size, first_not_finite, norms};
pub use report::{MicroBatch, Piece, Report, Row};

use crate::config::Plan;
use crate::corpus::place;
use crate::error::Error;

const REPORT: &str = "report.json";
const TOKENS: &str = "batch.tokens";
const PLAN: &str = "plan.toml";

/// The black box of a step, from 1, in a run's folder.
pub fn folder(run_folder: &Path, step: u64) -> PathBuf {
    run_folder.join("blackbox").join(format!("step-{step:08}"))
}

/// Writes a black box; one of the same step is written over.
///
/// # Errors
/// If the batch cannot be read again or the folder not be written to.
pub fn write(folder: &Path, plan: &Plan, loader: &Loader, report: &Report) -> Result<(), Error> {
    at("make", folder, fs::create_dir_all(folder))?;
    let vocab_size = u32::try_from(plan.model.spec().vocab_size).unwrap_or(u32::MAX);
    let mut tokens = TokenWriter::create(folder.join(TOKENS), vocab_size)?;
    for index in 0..report.micro_batches.len() as u64 {
        let (step, index) = place(&plan.batch.ramp(), report.data_step, index);
        tokens.write(&loader.micro_batch(step, index)?.tokens)?;
    }
    tokens.finish()?;
    let path = folder.join(PLAN);
    at("write", &path, fs::write(&path, plan.to_toml()))?;
    // Last: a folder with a report is whole.
    let text = serde_json::to_string_pretty(report).expect("a report is numbers and text");
    let path = folder.join(REPORT);
    at("write", &path, fs::write(&path, text + "\n"))
}

/// A black box that was read.
#[derive(Debug)]
pub struct BlackBox {
    /// What is known of the step.
    pub report: Report,
    /// The plan of its run.
    pub plan: Plan,
    tokens: TokenFile,
}

impl BlackBox {
    /// Reads a black box.
    ///
    /// # Errors
    /// If it is not whole.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(REPORT);
        let text = at("read", &path, fs::read_to_string(&path))?;
        let report = serde_json::from_str(&text).map_err(|source| Error::Io {
            action: "understand",
            path,
            source: source.into(),
        })?;
        let path = folder.join(PLAN);
        let plan = Plan::from_toml(&at("read", &path, fs::read_to_string(&path))?)?;
        Ok(Self { report, plan, tokens: TokenFile::open(folder.join(TOKENS))? })
    }

    /// Micro-batches of the step.
    pub fn num_micro_batches(&self) -> usize {
        self.report.micro_batches.len()
    }

    /// Micro-batch `index` as the step saw it.
    ///
    /// # Errors
    /// If the token file is damaged or shorter than the report says.
    pub fn micro_batch(&self, index: usize) -> Result<Batch, Error> {
        let (batch_size, sequence_length) =
            (self.plan.batch.micro_batch_size, self.plan.batch.sequence_length);
        let mut tokens = vec![0; batch_size * (sequence_length + 1)];
        self.tokens.read((index * tokens.len()) as u64, &mut tokens)?;
        let MicroBatch { segment_starts, masked_targets, .. } = &self.report.micro_batches[index];
        let loss_mask = (!masked_targets.is_empty()).then(|| {
            let mut mask = vec![true; batch_size * sequence_length];
            masked_targets.iter().for_each(|&target| mask[target] = false);
            mask
        });
        let segment_starts = segment_starts.clone();
        Ok(Batch { tokens, batch_size, sequence_length, segment_starts, loss_mask })
    }
}

fn at<T>(action: &'static str, path: &Path, outcome: std::io::Result<T>) -> Result<T, Error> {
    outcome.map_err(|source| Error::Io { action, path: path.to_owned(), source })
}
