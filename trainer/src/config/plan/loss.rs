//! What a plan adds to the cross-entropy that training minimizes.

use serde::{Deserialize, Serialize};

/// `[loss]`: terms beside the cross-entropy, in training; an evaluation has none of them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LossPlan {
    /// Factor on the squared logarithm of the softmax's normalizer; 0 for none.
    pub z_loss: f64,
    /// The part of the target's probability that is spread evenly over the vocabulary; 0 for none.
    pub label_smoothing: f64,
}

impl LossPlan {
    /// Whether there is nothing beside the cross-entropy.
    pub(in crate::config) fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}
