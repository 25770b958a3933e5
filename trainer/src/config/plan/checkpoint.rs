//! `[checkpoint]` of a plan: when to save, what stays, and what a resume may change.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::checkpoint::DEFAULT_MAX_SHARD_BYTES;

/// `[checkpoint]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPlan {
    /// Steps between checkpoints; 0 for only at the end.
    pub every: u64,
    /// How many checkpoints stay; at least 1.
    pub keep_last: u64,
    /// Checkpoints of steps that are multiples of it stay for good; 0 for none.
    #[serde(default)]
    pub keep_every: u64,
    /// Bytes of weights above which the model is stored in several files; at least 1.
    #[serde(default = "default_max_shard_bytes")]
    pub max_shard_bytes: u64,
    /// Seconds from a request to stop in which the run must have saved: it then leaves a step before
    /// its next micro-batch, and makes do with an earlier checkpoint where a save would take too
    /// long. 0: it ends the step, and saves it however long that takes.
    #[serde(default)]
    pub grace_seconds: u64,
    /// Whether to go on from the newest checkpoint in the run's folder.
    pub resume: bool,
    /// Whether to go on from an earlier one where the newest is damaged.
    #[serde(default)]
    pub fallback: bool,
    /// What a resume may change although it changes what the run means.
    #[serde(default)]
    pub allow_changes: Vec<Meaning>,
}

fn default_max_shard_bytes() -> u64 {
    DEFAULT_MAX_SHARD_BYTES
}

/// A part of a plan whose change changes what a resumed run means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Meaning {
    /// `seed`.
    Seed,
    /// `precision`.
    Precision,
    /// `[model]`. Parameters of other shapes cannot be loaded even so.
    Model,
    /// `[data]`, and the training tokens themselves.
    Data,
    /// `[batch]`.
    Batch,
    /// `[optim]`. State that the new rule does not keep, or the old one did not, cannot be loaded
    /// even so.
    Optim,
    /// `[schedule]`, and `run.steps`, which every schedule but a constant one depends on.
    Schedule,
    /// All else.
    Other,
}

impl Meaning {
    /// The words of `checkpoint.allow_changes`.
    pub(in crate::config) const WORDS: &'static [&'static str] =
        &["seed", "precision", "model", "data", "batch", "optim", "schedule", "other"];

    /// That of a key, given by its full path.
    pub(in crate::config) fn of_key(key: &str) -> Self {
        match key.split('.').next().unwrap_or_default() {
            "seed" => Self::Seed,
            "precision" => Self::Precision,
            "model" => Self::Model,
            "data" => Self::Data,
            "batch" => Self::Batch,
            "optim" => Self::Optim,
            "schedule" | "run" => Self::Schedule,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Meaning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(Self::WORDS[*self as usize])
    }
}
