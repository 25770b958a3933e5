//! What a plan says of GPUs.

use serde::{Deserialize, Serialize};

use crate::cuda::attention::Backend;
use crate::model::fp8::Fp8;

/// `[gpu]`: how layers compute on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuPlan {
    /// Whether element-wise work is done by kernels of our own.
    pub fused: bool,
    /// Which kernel attention takes.
    pub attention: AttentionChoice,
    /// Products of 8-bit numbers.
    pub fp8: Fp8,
    /// Whether a micro-step is recorded once and then replayed; plans before there was a choice: no.
    #[serde(default)]
    pub graphs: bool,
}

impl Default for GpuPlan {
    fn default() -> Self {
        Self { fused: true, attention: AttentionChoice::Auto, fp8: Fp8::Off, graphs: false }
    }
}

/// Who chooses attention's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionChoice {
    /// The fastest as measured at the start.
    Auto,
    /// `FlashAttention` 2, or what takes masks.
    Flash,
    /// That of xFormers.
    Efficient,
    /// cuDNN's.
    Cudnn,
    /// Products and a softmax.
    Math,
}

impl AttentionChoice {
    /// The kernel, unless it is to be measured.
    pub fn backend(self) -> Option<Backend> {
        match self {
            Self::Auto => None,
            Self::Flash => Some(Backend::Flash),
            Self::Efficient => Some(Backend::Efficient),
            Self::Cudnn => Some(Backend::Cudnn),
            Self::Math => Some(Backend::Math),
        }
    }
}
