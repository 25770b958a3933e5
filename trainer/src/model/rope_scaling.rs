//! Rotary frequencies for contexts longer than those a model was trained on, under the names of
//! Hugging Face's `rope_scaling`.
//!
//! The third common way, NTK-aware scaling, is no scaling here but another base:
//! `rope_theta * factor^(H / (H - 2))` for heads of H elements.

use serde::{Deserialize, Serialize};

/// How frequencies are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// All frequencies over `factor`; Chen et al. 2023, arXiv:2306.15595, eq. 4.
    Linear {
        /// How many times as long the context becomes; at least 1.
        factor: f64,
    },
    /// Slow frequencies over `factor`, fast ones as they are, a ramp between, and cosines and sines
    /// times `0.1 ln(factor) + 1`; Peng et al. 2023 (YaRN), arXiv:2309.00071, section 3.
    Yarn {
        /// How many times as long the context becomes; at least 1.
        factor: f64,
        /// The context before, in tokens.
        original_max_position_embeddings: usize,
        /// Frequencies that turn more often in it are left as they are.
        beta_fast: f64,
        /// Frequencies that turn less often in it are scaled whole.
        beta_slow: f64,
    },
}

/// YaRN's bounds where none are written.
pub const BETAS: (f64, f64) = (32.0, 1.0);

impl RopeScaling {
    /// How many times as long the context becomes.
    pub fn factor(&self) -> f64 {
        match *self {
            Self::Linear { factor } | Self::Yarn { factor, .. } => factor,
        }
    }
}

/// Angles of one position: for each pair `i` of a head `theta^(-2 i / H)`, scaled; and the factor on
/// cosines and sines.
///
/// # Shapes
/// Returns `H / 2` frequencies, in radians a position
pub fn frequencies(head_dim: usize, theta: f64, scaling: Option<&RopeScaling>) -> (Vec<f64>, f64) {
    let pairs = 0..head_dim / 2;
    let plain = pairs.map(|pair| theta.powf(-2.0 * pair as f64 / head_dim as f64));
    match scaling {
        None => (plain.collect(), 1.0),
        Some(RopeScaling::Linear { factor }) => (plain.map(|f| f / factor).collect(), 1.0),
        Some(&RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
        }) => {
            // The pair that turns so many times in the old context.
            let length = original_max_position_embeddings as f64;
            let pair_of = |turns: f64| {
                let ratio = (length / (turns * std::f64::consts::TAU)).ln();
                head_dim as f64 * ratio / (2.0 * theta.ln())
            };
            let low = pair_of(beta_fast).floor().max(0.0);
            let high = pair_of(beta_slow).ceil().min(head_dim as f64 - 1.0);
            // As in transformers, so that the ramp has a slope.
            let high = if low == high { high + 0.001 } else { high };
            let scaled = plain.enumerate().map(|(pair, frequency)| {
                let slow = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * slow + frequency * (1.0 - slow)
            });
            let length_factor = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            (scaled.collect(), length_factor)
        }
    }
}

#[cfg(test)]
mod tests;
