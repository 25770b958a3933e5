//! The schedule's part of a plan.

use serde::{Deserialize, Serialize};

/// `[schedule]`: what changes over the steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SchedulePlan {
    /// The learning rate's shape; in TOML the keys `kind`, `warmup_steps` and those of the kind.
    #[serde(flatten)]
    pub shape: Schedule,
    /// What places in the schedule are counted by.
    #[serde(default)]
    pub by: ScheduleUnit,
    /// How the schedule goes on from `from_step`.
    #[serde(default)]
    pub mode: PhaseMode,
    /// The first step of the run's last phase, counted from 0; none without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_step: Option<u64>,
    /// The step whose place in the schedule a rewound phase starts at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewind_to: Option<u64>,
    /// Steps of a re-warm-up from `from_step` on; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewarm_steps: Option<u64>,
    /// The weight decay's shape over all steps, as a factor on `optim.weight_decay`; none where that
    /// is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<DecayShape>,
    /// The factor that the weight decay approaches; none where it is constant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay_final_ratio: Option<f64>,
}

impl SchedulePlan {
    /// Whether no step's numbers depend on how many steps there are.
    pub(in crate::config) fn is_endless(&self) -> bool {
        let shape = matches!(self.shape, Schedule::Constant { .. } | Schedule::InverseSqrt { .. });
        shape && matches!(self.weight_decay, None | Some(DecayShape::Constant))
    }
}

/// What places in a schedule are counted by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleUnit {
    /// Optimizer steps.
    #[default]
    Steps,
    /// Tokens, in units of a full step's: they differ under a batch ramp.
    Tokens,
}

/// How a schedule goes on in a new phase of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhaseMode {
    /// As if nothing had happened.
    #[default]
    Continue,
    /// Anew, warm-up included, over the steps that are left.
    Fresh,
    /// From where it was at `rewind_to`.
    Rewind,
}

/// The weight decay over the steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecayShape {
    /// The same in every step.
    #[default]
    Constant,
    /// A straight line.
    Linear,
    /// Half a cosine.
    Cosine,
}

/// `[schedule]`: a linear warm-up, then one of these shapes, as a factor on `optim.lr`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
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
    /// `sqrt(warmup_steps / step)`; Vaswani et al. 2017, arXiv:1706.03762, eq. 3.
    InverseSqrt {
        /// Steps of warm-up.
        warmup_steps: u64,
    },
    /// 1, then a cooldown to `final_ratio`; Hu et al. 2024, arXiv:2404.06395; Haegele et al. 2024,
    /// arXiv:2405.18392.
    Wsd {
        /// Steps of warm-up.
        warmup_steps: u64,
        /// The factor that the decay approaches: it is reached right after the last step.
        final_ratio: f64,
        /// The part of all steps that the cooldown takes; `derived.cooldown_steps` of them.
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
            | Self::InverseSqrt { warmup_steps }
            | Self::Cosine { warmup_steps, .. }
            | Self::Linear { warmup_steps, .. }
            | Self::Wsd { warmup_steps, .. } => warmup_steps,
        }
    }
}
