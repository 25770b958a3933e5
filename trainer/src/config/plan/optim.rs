//! The optimizer's and the schedule's part of a plan.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::whole::{AdafactorPlan, AdamMiniPlan, CamePlan, GalorePlan, MuonPlan, SoapPlan};

/// `[optim]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimPlan {
    /// The rule with its own numbers; in TOML the keys `rule`, `betas` and `eps`.
    #[serde(flatten)]
    pub rule: Rule,
    /// The peak learning rate.
    pub lr: f64,
    /// Decoupled weight decay: a step multiplies weights by `1 - lr * weight_decay`.
    pub weight_decay: f64,
    /// The largest global L2 norm of the gradient; 0 for no clipping.
    pub clip_norm: f64,
    /// The groups of parameters that the model has.
    pub groups: BTreeMap<Group, GroupPlan>,
}

impl OptimPlan {
    /// The rule of a file that names none.
    pub(in crate::config) const DEFAULT_RULE: &'static str = "adamw";
}

/// An update rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "lowercase")]
pub enum Rule {
    /// Loshchilov and Hutter 2019, arXiv:1711.05101.
    AdamW {
        /// Decay rates of the first and second moment.
        betas: [f64; 2],
        /// Added to the root of the second moment.
        eps: f64,
        /// How the moments are stored.
        state_dtype: StateDtype,
    },
    /// Chen et al. 2023, arXiv:2302.06675.
    Lion {
        /// Decay rates of the update's and the kept moment.
        betas: [f64; 2],
        /// How the moment is stored.
        state_dtype: StateDtype,
    },
    /// `AdamW` with moments in 8 bits; Dettmers et al. 2021, arXiv:2110.02861.
    #[serde(rename = "adamw_8bit")]
    AdamW8bit {
        /// As `AdamW`'s.
        betas: [f64; 2],
        /// As `AdamW`'s.
        eps: f64,
    },
    /// Lion with its moment in 8 bits.
    #[serde(rename = "lion_8bit")]
    Lion8bit {
        /// As Lion's.
        betas: [f64; 2],
    },
    /// Shazeer and Stern 2018, arXiv:1804.04235.
    Adafactor(AdafactorPlan),
    /// Luo et al. 2023, arXiv:2307.02047.
    Came(CamePlan),
    /// Zhang et al. 2024, arXiv:2406.16793.
    #[serde(rename = "adam_mini")]
    AdamMini(AdamMiniPlan),
    /// Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982.
    Muon(MuonPlan),
    /// Zhao et al. 2024, arXiv:2403.03507.
    Galore(GalorePlan),
    /// Vyas et al. 2024, arXiv:2409.11321.
    Soap(SoapPlan),
}

/// How an optimizer's state is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateDtype {
    /// In the masters' dtype.
    Master,
    /// In bf16, rounded at random; Gupta et al. 2015, arXiv:1502.02551.
    Bf16,
}

/// A kind of parameter that may have its own learning rate and decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Matrices inside blocks.
    Matrix,
    /// Token and position embeddings, and with them a tied head.
    Embedding,
    /// Weights and biases of norms.
    Norm,
    /// Biases of linear layers.
    Bias,
    /// The head, where it is not the embedding.
    Head,
}

/// `[optim.groups.<group>]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GroupPlan {
    /// Factor on `optim.lr`.
    pub lr_multiplier: f64,
    /// Factor on `optim.weight_decay`; left out of TOML where that is 0, as it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay_multiplier: Option<f64>,
}

/// `[schedule]`: a linear warm-up, then one of these shapes, as a factor on `optim.lr`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Schedule {
    /// 1 to the end.
    Constant {
        /// Steps of warm-up.
        warmup_steps: u64,
    },
    /// Half a cosine from 1 to `final_ratio`; Loshchilov and Hutter 2017, arXiv:1608.03983.
    Cosine {
        /// Steps of warm-up.
        warmup_steps: u64,
        /// The factor that the decay approaches: it is reached right after the last step.
        final_ratio: f64,
    },
    /// A straight line from 1 to `final_ratio`; Bergsma et al. 2025, arXiv:2502.15938.
    Linear {
        /// Steps of warm-up.
        warmup_steps: u64,
        /// The factor that the decay approaches: it is reached right after the last step.
        final_ratio: f64,
    },
    /// 1, then a cooldown to `final_ratio`; Hu et al. 2024, arXiv:2404.06395; Haegele et al. 2024,
    /// arXiv:2405.18392.
    Wsd {
        /// Steps of warm-up.
        warmup_steps: u64,
        /// The factor that the decay approaches: it is reached right after the last step.
        final_ratio: f64,
        /// The part of all steps that the cooldown takes; [`Derived::cooldown_steps`] of them.
        cooldown_fraction: f64,
    },
}

impl Schedule {
    /// The shape of a file that names none.
    pub(in crate::config) const DEFAULT_KIND: &'static str = "cosine";

    /// Steps of linear warm-up.
    pub fn warmup_steps(&self) -> u64 {
        match *self {
            Self::Constant { warmup_steps }
            | Self::Cosine { warmup_steps, .. }
            | Self::Linear { warmup_steps, .. }
            | Self::Wsd { warmup_steps, .. } => warmup_steps,
        }
    }
}
