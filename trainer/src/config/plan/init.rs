//! What weights start from, and how a smaller model is grown: `[init]`, `[init.growth]` and the
//! stages of `[[growth]]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Group, GroupPlan, PhaseMode, Plan};
use crate::model::config::{BranchGain, ModelConfig, NormPlacement, ResidualForm};

/// `[init]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InitPlan {
    /// How parameters are drawn that come from no checkpoint.
    #[serde(default)]
    pub scheme: InitScheme,
    /// The model that the run starts from: a checkpoint, a run's folder or a Hugging Face folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// How that model is grown; none if it is taken as it is, weights only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth: Option<GrowthPlan>,
}

/// How initial weights are drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitScheme {
    /// Radford et al. 2019: all of one deviation, those that end a branch divided by `sqrt(2 L)`.
    #[default]
    Gpt2,
    /// torchtitan's Llama: truncated, ends of branches by the depth they stand in, head by width.
    Llama,
    /// Glorot and Bengio 2010: `sqrt(2 / (fan_in + fan_out))`.
    Xavier,
    /// He et al. 2015, arXiv:1502.01852: `1 / sqrt(fan_in)`.
    Kaiming,
    /// Nguyen and Salazar 2019, arXiv:1910.05895, with the ends of branches as in GPT-NeoX.
    SmallInit,
    /// Zhao et al. 2022 (ZerO), arXiv:2110.12661: identities and Hadamard matrices, nothing random.
    Zero,
    /// Zhang et al. 2019, arXiv:1901.09321: no norms, silent branches, numbers around layers.
    Fixup,
    /// De and Smith 2020, arXiv:2002.10444: no norms, a factor of 0 on each branch.
    Skipinit,
    /// Bachlechner et al. 2020, arXiv:2003.04887: no norms, a factor of 0 on each block's branches.
    Rezero,
    /// Huang et al. 2020: no norms, matrices small enough for that.
    TFixup,
    /// Wang et al. 2022 (DeepNet), arXiv:2203.00555: norms behind sums in which the stream counts
    /// more.
    Deepnorm,
    /// Wang et al. 2022 (Magneto), arXiv:2210.06423: norms inside branches too.
    Subln,
}

impl InitScheme {
    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Xavier => "xavier",
            Self::Kaiming => "kaiming",
            Self::SmallInit => "small_init",
            Self::Zero => "zero",
            Self::Fixup => "fixup",
            Self::Skipinit => "skipinit",
            Self::Rezero => "rezero",
            Self::TFixup => "t_fixup",
            Self::Deepnorm => "deepnorm",
            Self::Subln => "subln",
        }
    }

    /// The residual form that a scheme is made for, in a model of so many blocks; none if it takes
    /// any.
    pub fn residual_form(self, num_layers: usize) -> Option<ResidualForm> {
        let plain = ResidualForm::default();
        let bare = ResidualForm { norm: NormPlacement::None, ..plain };
        match self {
            Self::Gpt2
            | Self::Llama
            | Self::Xavier
            | Self::Kaiming
            | Self::SmallInit
            | Self::Zero => None,
            Self::Fixup => {
                Some(ResidualForm { gain: BranchGain::Branch, scalar_biases: true, ..bare })
            }
            Self::Skipinit => Some(ResidualForm { gain: BranchGain::Branch, ..bare }),
            Self::Rezero => Some(ResidualForm { gain: BranchGain::Block, ..bare }),
            Self::TFixup => Some(bare),
            Self::Deepnorm => {
                // alpha = (2 M)^(1/4) for M blocks of a decoder alone (table 2).
                let skip = (2.0 * num_layers.max(1) as f64).powf(0.25);
                Some(ResidualForm { norm: NormPlacement::Post, skip, ..plain })
            }
            Self::Subln => Some(ResidualForm { norm: NormPlacement::Sub, ..plain }),
        }
    }
}

/// How a model is grown from a smaller one; `[init.growth]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GrowthPlan {
    /// Where added blocks come from.
    pub depth: DepthGrowth,
    /// How copies of channels, heads and neurons share what they read.
    pub width: WidthGrowth,
    /// What new channels of the residual stream hold.
    pub residual: ResidualGrowth,
    /// Deviation of an uneven split, as a part of that of initial weights.
    pub split_std: f64,
    /// Steps in which the map is learned, by LiGO; 0 for the operators as they are.
    pub learn_steps: u64,
    /// What becomes of the optimizer's state.
    pub moments: MomentGrowth,
    /// Steps in which masks over what was added rise from 0 to 1; 0 for no masks.
    #[serde(default)]
    pub mask_steps: u64,
}

/// Where added blocks come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DepthGrowth {
    /// Block `l mod L`: the whole stack again.
    Stack,
    /// Block `floor(l L / L')`: each block again beside itself.
    Interpolate,
    /// Copies beside their blocks whose branches end in zeros: the function stays.
    ZeroInsert,
    /// Norms of zero before identity matrices: the function stays.
    IdentityInsert,
    /// Silent blocks after the last ones, mixed from two: the function stays.
    Lemon,
}

/// How copies share what they read, and where added rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WidthGrowth {
    /// In equal parts: the function stays, and copies stay copies.
    Equal,
    /// In parts that differ at random: the function stays, and copies part.
    Uneven,
    /// In equal parts, and added rows are those of the next block: the function does not stay.
    Aki,
    /// Not at all: added heads, neurons and channels are drawn at random, behind masks at first.
    Random,
}

/// What new channels of the residual stream hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResidualGrowth {
    /// Whole copies of the old ones, and what is left is silent.
    Copy,
    /// All are silent.
    ZeroPad,
}

/// What becomes of the optimizer's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MomentGrowth {
    /// It is mapped with the weights; what is new starts its own count.
    Map,
    /// Zero, with its count, wherever a parameter has changed.
    Zero,
    /// Zero, with its count, everywhere.
    Fresh,
}

impl GrowthPlan {
    /// What a file that says nothing gets: exact operators, whose moments are mapped.
    pub const DEFAULT: Self = Self {
        depth: DepthGrowth::ZeroInsert,
        width: WidthGrowth::Uneven,
        residual: ResidualGrowth::Copy,
        split_std: 0.1,
        learn_steps: 0,
        moments: MomentGrowth::Map,
        mask_steps: 0,
    };

    /// Whether a model grown in depth or width keeps its function, in real arithmetic: under masks
    /// as they are at first.
    pub fn keeps_function(&self, deepens: bool, widens: bool) -> bool {
        let shifts = matches!(self.depth, DepthGrowth::Stack | DepthGrowth::Interpolate);
        let is_masked = self.mask_steps > 0;
        let jumps = deepens && shifts && !is_masked
            || widens && self.width == WidthGrowth::Aki
            || widens && self.width == WidthGrowth::Random && !is_masked;
        self.learn_steps == 0 && !jumps
    }

    /// The state of the optimizer where a file does not say: mapped if the function stays.
    pub(in crate::config) fn default_moments(
        depth: DepthGrowth,
        width: WidthGrowth,
        mask_steps: u64,
    ) -> MomentGrowth {
        let plan = Self { depth, width, mask_steps, ..Self::DEFAULT };
        if plan.keeps_function(true, true) { MomentGrowth::Map } else { MomentGrowth::Fresh }
    }
}

/// One stage of `[[growth]]`: from `at_step` on the model is this one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GrowthStage {
    /// The last step of the smaller model; above 0 and below `run.steps`.
    pub at_step: u64,
    /// How the schedule goes on; rewound, from the end of its warm-up.
    pub schedule: PhaseMode,
    /// How the model is grown.
    #[serde(flatten)]
    pub growth: GrowthPlan,
    /// What it becomes.
    pub model: ModelConfig,
}

impl Plan {
    /// How many stages were entered before the step after `step`: the number of the stage that a
    /// run at `step` goes on with.
    pub fn stage_after(&self, step: u64) -> usize {
        self.growth.iter().filter(|stage| stage.at_step <= step).count()
    }

    /// The number of the stage that did step `step`, and wrote its checkpoint.
    pub fn stage_of(&self, step: u64) -> usize {
        self.growth.iter().filter(|stage| stage.at_step < step).count()
    }

    /// The last step of a stage.
    pub fn end_of_stage(&self, stage: usize) -> u64 {
        self.growth.get(stage).map_or(self.run.steps, |next| next.at_step)
    }

    /// The plan with the model of a stage; stage 0 is the plan itself.
    #[must_use]
    pub fn at_stage(&self, stage: usize) -> Self {
        let mut plan = self.clone();
        let Some(entered) = stage.checked_sub(1).map(|index| &self.growth[index]) else {
            return plan;
        };
        let before = stage.checked_sub(2).map_or(&self.model, |index| &self.growth[index].model);
        plan.ramp = entered.growth.ramp(entered.at_step, [before, &entered.model]);
        plan.model = entered.model.clone();
        let anew = self.growth[..stage].iter().rfind(|s| s.schedule != PhaseMode::Continue);
        if let Some(anew) = anew {
            let rewinds = anew.schedule == PhaseMode::Rewind;
            plan.schedule.mode = anew.schedule;
            plan.schedule.from_step = Some(anew.at_step);
            plan.schedule.rewind_to = rewinds.then(|| plan.schedule.shape.warmup_steps());
        }
        let spec = plan.model.spec();
        plan.derived.num_parameters = spec.num_parameters();
        plan.derived.flops_per_token = spec.flops_per_token(plan.batch.sequence_length);
        if !spec.tied {
            // A head that became its own in this run.
            let decays = plan.optim.weight_decay > 0.0;
            let weight_decay_multiplier = decays.then_some(1.0);
            let own = GroupPlan { rule: None, lr_multiplier: 1.0, weight_decay_multiplier };
            plan.optim.groups.entry(Group::Head).or_insert(own);
        }
        plan
    }
}
