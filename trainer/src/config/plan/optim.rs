//! The optimizer's part of a plan.

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
    /// What a resume does with the state of another rule.
    #[serde(default)]
    pub on_change: OnChange,
    /// The groups of parameters that the model has.
    pub groups: BTreeMap<Group, GroupPlan>,
}

/// Whether a rule with this decay, or the rule of what it does not take, makes weights decay.
pub(in crate::config) fn decays(rule: &Rule, weight_decay: f64) -> bool {
    weight_decay != 0.0 || rule.rest().is_some_and(|rest| rest.weight_decay != 0.0)
}

impl OptimPlan {
    /// The rule of a file that names none.
    pub(in crate::config) const DEFAULT_RULE: &'static str = "adamw";

    /// Whether any parameter's weights decay, but for multipliers.
    pub(in crate::config) fn decays(&self) -> bool {
        decays(&self.rule, self.weight_decay)
    }

    /// The first beta of schedule-free parameters, if there are any: by it masters and base iterates
    /// give the average.
    pub fn averaging(&self) -> Option<f64> {
        let of_group = |group: &GroupPlan| match group.rule.map_or(self.rule, RuleName::usual) {
            Rule::ScheduleFree { betas, .. } => Some(betas[0]),
            _ => None,
        };
        self.groups.values().find_map(of_group)
    }

    /// Whether the state of a run of this plan goes on in a run of another: the same rules, and
    /// stored alike.
    pub fn keeps_state_of(&self, other: &Self) -> bool {
        let dtype = |rule: &Rule| match *rule {
            Rule::AdamW { state_dtype, .. } | Rule::Lion { state_dtype, .. } => state_dtype,
            _ => StateDtype::Master,
        };
        let rules = |plan: &Self| -> Vec<(Group, RuleName)> {
            let own = plan.rule.name();
            plan.groups.iter().map(|(group, plan)| (*group, plan.rule.unwrap_or(own))).collect()
        };
        rules(self) == rules(other) && dtype(&self.rule) == dtype(&other.rule)
    }
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
    /// Sophia with the Gauss-Newton-Bartlett estimate; Liu et al. 2023, arXiv:2305.14342.
    #[serde(rename = "sophia_g")]
    SophiaG {
        /// Decay rates of the momentum, a step, and of the curvature, an estimate.
        betas: [f64; 2],
        /// The least denominator.
        eps: f64,
        /// How much curvature a full step takes.
        gamma: f64,
        /// Steps between two estimates.
        hessian_every: u64,
        /// The largest norm of the sampled gradient before it is squared; 0 for no clipping.
        hessian_clip_norm: f64,
    },
    /// Sophia with Hutchinson's estimate.
    #[serde(rename = "sophia_h")]
    SophiaH {
        /// As `SophiaG`'s.
        betas: [f64; 2],
        /// As `SophiaG`'s.
        eps: f64,
        /// As `SophiaG`'s.
        gamma: f64,
        /// As `SophiaG`'s.
        hessian_every: u64,
        /// The distribution of the random direction.
        probe: Probe,
    },
    /// Schedule-free `AdamW`; Defazio et al. 2024, arXiv:2405.15682.
    #[serde(rename = "schedule_free")]
    ScheduleFree {
        /// Interpolation between iterate and average, and decay rate of the second moment.
        betas: [f64; 2],
        /// As `AdamW`'s.
        eps: f64,
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

/// The name of an update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleName {
    /// [`Rule::AdamW`].
    AdamW,
    /// [`Rule::Lion`].
    Lion,
    /// [`Rule::AdamW8bit`].
    #[serde(rename = "adamw_8bit")]
    AdamW8bit,
    /// [`Rule::Lion8bit`].
    #[serde(rename = "lion_8bit")]
    Lion8bit,
    /// [`Rule::SophiaG`].
    #[serde(rename = "sophia_g")]
    SophiaG,
    /// [`Rule::SophiaH`].
    #[serde(rename = "sophia_h")]
    SophiaH,
    /// [`Rule::ScheduleFree`].
    #[serde(rename = "schedule_free")]
    ScheduleFree,
    /// [`Rule::Adafactor`].
    Adafactor,
    /// [`Rule::Came`].
    Came,
    /// [`Rule::AdamMini`].
    #[serde(rename = "adam_mini")]
    AdamMini,
    /// [`Rule::Muon`].
    Muon,
    /// [`Rule::Galore`].
    Galore,
    /// [`Rule::Soap`].
    Soap,
}

impl RuleName {
    /// The rule with the numbers of its literature: what a file that sets none gets, and a group
    /// with a rule of its own.
    pub fn usual(self) -> Rule {
        let state_dtype = StateDtype::Master;
        let sophia = ([0.965, 0.99], 1e-12, 10);
        match self {
            Self::AdamW => Rule::AdamW { betas: [0.9, 0.95], eps: 1e-8, state_dtype },
            Self::Lion => Rule::Lion { betas: [0.95, 0.98], state_dtype },
            Self::AdamW8bit => Rule::AdamW8bit { betas: [0.9, 0.95], eps: 1e-8 },
            Self::Lion8bit => Rule::Lion8bit { betas: [0.95, 0.98] },
            Self::SophiaG => {
                let (betas, eps, hessian_every) = sophia;
                let (gamma, hessian_clip_norm) = (0.05, 0.0);
                Rule::SophiaG { betas, eps, gamma, hessian_every, hessian_clip_norm }
            }
            Self::SophiaH => {
                let (betas, eps, hessian_every) = sophia;
                let (gamma, probe) = (0.01, Probe::Rademacher);
                Rule::SophiaH { betas, eps, gamma, hessian_every, probe }
            }
            Self::ScheduleFree => Rule::ScheduleFree { betas: [0.9, 0.999], eps: 1e-8 },
            Self::Adafactor => Rule::Adafactor(AdafactorPlan::USUAL),
            Self::Came => Rule::Came(CamePlan::USUAL),
            Self::AdamMini => Rule::AdamMini(AdamMiniPlan::USUAL),
            Self::Muon => Rule::Muon(MuonPlan::USUAL),
            Self::Galore => Rule::Galore(GalorePlan::USUAL),
            Self::Soap => Rule::Soap(SoapPlan::USUAL),
        }
    }

    /// The learning rate and the weight decay of a file that sets none.
    ///
    /// Lion's are a third of `AdamW`'s learning rate and three times its decay, so that their
    /// product stays (Chen et al. 2023, arXiv:2302.06675, section 5); schedule-free's rate is its
    /// package's; Sophia's decay is that of its authors' runs; those of rules for whole parameters
    /// are of their papers and their authors' code, of torch (Adafactor), and `AdamW`'s (Muon at its
    /// usual scaling).
    pub fn usual_lr_and_decay(self) -> (f64, f64) {
        match self {
            Self::AdamW | Self::AdamW8bit => (3e-4, 0.1),
            Self::Lion | Self::Lion8bit => (1e-4, 0.3),
            Self::SophiaG | Self::SophiaH => (3e-4, 0.2),
            Self::ScheduleFree => (2.5e-3, 0.1),
            Self::Adafactor | Self::Galore => (1e-2, 0.0),
            Self::Came => (2e-4, 0.0),
            Self::AdamMini | Self::Muon => (3e-4, 0.1),
            Self::Soap => (3e-3, 0.01),
        }
    }
}

impl Rule {
    /// Its name.
    pub fn name(&self) -> RuleName {
        match self {
            Self::AdamW { .. } => RuleName::AdamW,
            Self::Lion { .. } => RuleName::Lion,
            Self::AdamW8bit { .. } => RuleName::AdamW8bit,
            Self::Lion8bit { .. } => RuleName::Lion8bit,
            Self::SophiaG { .. } => RuleName::SophiaG,
            Self::SophiaH { .. } => RuleName::SophiaH,
            Self::ScheduleFree { .. } => RuleName::ScheduleFree,
            Self::Adafactor(_) => RuleName::Adafactor,
            Self::Came(_) => RuleName::Came,
            Self::AdamMini(_) => RuleName::AdamMini,
            Self::Muon(_) => RuleName::Muon,
            Self::Galore(_) => RuleName::Galore,
            Self::Soap(_) => RuleName::Soap,
        }
    }
}

/// The distribution of the random direction of Hutchinson's estimate; both have mean 0 and
/// covariance 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// 1 or -1 with equal probability: the estimate of least variance.
    Rademacher,
    /// Normal, as in Sophia's paper.
    Gaussian,
}

/// What a resume does with the optimizer's state where the rule is another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnChange {
    /// Refuses to go on.
    #[default]
    Refuse,
    /// Starts with new state from the weights of the checkpoint.
    Reset,
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
    /// Learned numbers of residual branches.
    Scalar,
}

/// `[optim.groups.<group>]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GroupPlan {
    /// A rule of its own with the numbers of [`RuleName::usual`]; none for that of the run, with
    /// the run's numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// Factor on `optim.lr`.
    pub lr_multiplier: f64,
    /// Factor on `optim.weight_decay`; left out of TOML where that is 0, as it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay_multiplier: Option<f64>,
}
