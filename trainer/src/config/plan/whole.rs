//! The rules that need parameters whole, as a plan writes them.

use grove_optim::{
    AdafactorConfig, AdamMiniConfig, AdamWConfig, CameConfig, GaloreConfig, MuonConfig,
    MuonPrecision, MuonScale, SoapConfig, StateDtype, StepScale as OptimStepScale, WholeRuleConfig,
};
use serde::{Deserialize, Serialize};

use super::optim::Rule;

/// `[optim]` with `rule = "adafactor"`: Shazeer and Stern 2018, arXiv:1804.04235.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdafactorPlan {
    /// The second moment's decay at update `t` is `1 - t^-decay_power`.
    pub decay_power: f64,
    /// The least mean squared gradient that is believed.
    pub eps1: f64,
    /// The least root mean square of a parameter that a relative step believes.
    pub eps2: f64,
    /// The most that an update's root mean square may be.
    pub clip_threshold: f64,
    /// How long a step is.
    pub step_scale: StepScale,
}

/// `[optim]` with `rule = "came"`: Luo et al. 2023, arXiv:2307.02047.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CamePlan {
    /// Decay rates of the update's average and of the second moment.
    pub betas: [f64; 2],
    /// Decay rate of the instability.
    pub beta3: f64,
    /// Added to the mean squared gradient.
    pub eps1: f64,
    /// Added to the mean squared instability.
    pub eps2: f64,
    /// The most that an update's root mean square may be.
    pub clip_threshold: f64,
}

/// `[optim]` with `rule = "adam_mini"`: Zhang et al. 2024, arXiv:2406.16793.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamMiniPlan {
    /// Decay rates of the first moment and of the blocks' second moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// `[optim]` with `rule = "muon"`: Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MuonPlan {
    /// Decay rate of the momentum.
    pub momentum: f64,
    /// Whether to look one step ahead.
    pub nesterov: bool,
    /// Newton-Schulz iterations of an update.
    pub num_iterations: u64,
    /// How the learning rate depends on a matrix's shape.
    pub scaling: Scaling,
    /// What the iterations compute in.
    pub products: Products,
    /// What the other parameters get.
    pub rest: RestPlan,
}

/// `[optim]` with `rule = "galore"`: Zhao et al. 2024, arXiv:2403.03507.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GalorePlan {
    /// Singular directions of a matrix.
    pub rank: u64,
    /// Updates between two decompositions.
    pub refresh_every: u64,
    /// Factor on the learning rate.
    pub scale: f64,
    /// Decay rates of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// What the other parameters get.
    pub rest: RestPlan,
}

/// `[optim]` with `rule = "soap"`: Vyas et al. 2024, arXiv:2409.11321.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SoapPlan {
    /// Decay rates of the moments.
    pub betas: [f64; 2],
    /// Decay rate of the covariances.
    pub covariance_beta: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Updates between two refreshes of the bases.
    pub refresh_every: u64,
    /// A side longer than this keeps its own coordinates.
    pub max_basis_dim: u64,
    /// What the other parameters get.
    pub rest: RestPlan,
}

/// `[optim.rest]`: `AdamW` for parameters that the rule does not take, which are embeddings, head,
/// norms and biases.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RestPlan {
    /// Their peak learning rate.
    pub lr: f64,
    /// Decay rates of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// How long a step of Adafactor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepScale {
    /// In proportion to the parameter's root mean square.
    Relative,
    /// The learning rate, as of other rules.
    Plain,
}

/// How Muon's learning rate depends on a matrix's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// `sqrt(max(1, outputs / inputs))`.
    Original,
    /// `0.2 sqrt(max(outputs, inputs))`: `AdamW`'s learning rate can be kept.
    MatchRmsAdamw,
}

/// What Muon's products are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Products {
    /// In the masters' dtype.
    Master,
    /// In bf16.
    Bf16,
}

impl AdamMiniPlan {
    /// The numbers of its literature.
    pub const USUAL: Self = Self { betas: [0.9, 0.95], eps: 1e-8 };
}

impl RestPlan {
    /// The usual numbers of `AdamW`.
    pub const USUAL: Self = Self { lr: 3e-4, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1 };

    /// In the optimizer room's own type.
    pub fn config(&self) -> AdamWConfig {
        let Self { betas: [beta1, beta2], eps, weight_decay, .. } = *self;
        AdamWConfig { beta1, beta2, eps, weight_decay, state_dtype: StateDtype::Accumulation }
    }
}

impl Rule {
    /// What it does with parameters that it needs whole, if it does.
    pub fn whole(&self, weight_decay: f64) -> Option<WholeRuleConfig> {
        Some(match *self {
            Self::Adafactor(plan) => WholeRuleConfig::Adafactor(plan.config(weight_decay)),
            Self::Came(plan) => WholeRuleConfig::Came(plan.config(weight_decay)),
            Self::AdamMini(AdamMiniPlan { betas: [beta1, beta2], eps }) => {
                WholeRuleConfig::AdamMini(AdamMiniConfig { beta1, beta2, eps, weight_decay })
            }
            Self::Muon(plan) => WholeRuleConfig::Muon(plan.config(weight_decay)),
            Self::Galore(plan) => WholeRuleConfig::Galore(plan.config(weight_decay)),
            Self::Soap(plan) => WholeRuleConfig::Soap(plan.config(weight_decay)),
            _ => return None,
        })
    }

    /// What the parameters get that a rule for whole ones does not take, if there are any.
    pub fn rest(&self) -> Option<&RestPlan> {
        match self {
            Self::Muon(plan) => Some(&plan.rest),
            Self::Galore(plan) => Some(&plan.rest),
            Self::Soap(plan) => Some(&plan.rest),
            _ => None,
        }
    }
}

impl AdafactorPlan {
    /// The numbers of torch, but for `eps1`.
    pub const USUAL: Self = Self {
        decay_power: 0.8,
        eps1: 1e-18,
        eps2: 1e-3,
        clip_threshold: 1.0,
        step_scale: StepScale::Relative,
    };

    fn config(self, weight_decay: f64) -> AdafactorConfig {
        let Self { decay_power, eps1, eps2, clip_threshold, step_scale } = self;
        let step_scale = match step_scale {
            StepScale::Relative => OptimStepScale::Relative,
            StepScale::Plain => OptimStepScale::Plain,
        };
        AdafactorConfig { decay_power, eps1, eps2, clip_threshold, step_scale, weight_decay }
    }
}

impl CamePlan {
    /// The numbers of its literature.
    pub const USUAL: Self =
        Self { betas: [0.9, 0.999], beta3: 0.9999, eps1: 1e-30, eps2: 1e-16, clip_threshold: 1.0 };

    fn config(self, weight_decay: f64) -> CameConfig {
        let Self { betas: [beta1, beta2], beta3, eps1, eps2, clip_threshold } = self;
        CameConfig { beta1, beta2, beta3, eps1, eps2, clip_threshold, weight_decay }
    }
}

impl MuonPlan {
    /// The numbers of its literature.
    pub const USUAL: Self = Self {
        momentum: 0.95,
        nesterov: true,
        num_iterations: 5,
        scaling: Scaling::MatchRmsAdamw,
        products: Products::Master,
        rest: RestPlan::USUAL,
    };

    fn config(self, weight_decay: f64) -> MuonConfig {
        let Self { momentum, nesterov, num_iterations, .. } = self;
        let scale = match self.scaling {
            Scaling::Original => MuonScale::Original,
            Scaling::MatchRmsAdamw => MuonScale::MatchRms,
        };
        let precision = match self.products {
            Products::Master => MuonPrecision::Accumulation,
            Products::Bf16 => MuonPrecision::Bf16,
        };
        MuonConfig { momentum, nesterov, num_iterations, scale, precision, weight_decay }
    }
}

impl GalorePlan {
    /// The numbers of its literature.
    pub const USUAL: Self = Self {
        rank: 128,
        refresh_every: 200,
        scale: 0.25,
        betas: [0.9, 0.999],
        eps: 1e-6,
        rest: RestPlan::USUAL,
    };

    fn config(self, weight_decay: f64) -> GaloreConfig {
        let Self { rank, refresh_every, scale, betas: [beta1, beta2], eps, .. } = self;
        GaloreConfig { rank, refresh_every, scale, beta1, beta2, eps, weight_decay }
    }
}

impl SoapPlan {
    /// The numbers of its literature.
    pub const USUAL: Self = Self {
        betas: [0.95, 0.95],
        covariance_beta: 0.95,
        eps: 1e-8,
        refresh_every: 10,
        max_basis_dim: 10_000,
        rest: RestPlan::USUAL,
    };

    fn config(self, weight_decay: f64) -> SoapConfig {
        let Self { betas: [beta1, beta2], covariance_beta, eps, .. } = self;
        let Self { refresh_every, max_basis_dim, .. } = self;
        SoapConfig {
            beta1,
            beta2,
            covariance_beta,
            eps,
            refresh_every,
            max_basis_dim,
            weight_decay,
        }
    }
}
