//! A teacher that a run learns from: `[distill]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[distill]`: for the first steps the loss is partly the divergence from a smaller model's
/// predictions; Qin et al. 2022, arXiv:2105.13880.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DistillPlan {
    /// The teacher: a checkpoint, a run's folder or a Hugging Face folder.
    pub teacher: PathBuf,
    /// Its weight at the first step; above 0 and at most 1.
    pub weight: f64,
    /// Steps after which its weight is 0; above 0.
    pub steps: u64,
    /// How its weight falls.
    pub decay: DistillDecay,
    /// The divisor of both models' logits; above 0.
    pub temperature: f64,
}

/// How a teacher's weight falls to 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DistillDecay {
    /// In a straight line.
    Linear,
    /// As half a cosine.
    Cosine,
    /// Not until the last step, then at once.
    Constant,
}
