//! A run as resolved: every number final. The shape is that of the file, so that a printed plan is
//! itself a configuration, apart from its `[derived]` table.

mod checkpoint;
mod data;
mod distill;
mod gpu;
mod guard;
mod init;
mod loss;
mod optim;
mod ramp;
mod schedule;
mod whole;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use crate::model::config::{ModelConfig, Precision};
use crate::model::ramp::Ramp;

pub use checkpoint::{CheckpointPlan, Meaning};
pub use data::{DataPlan, DataSource, Packing, SourcePlan, StagePlan, Tokenizer, Validation};
pub use distill::{DistillDecay, DistillPlan};
pub use gpu::{AttentionChoice, GpuPlan};
pub use guard::{GuardPlan, Policy, WatchdogPlan};
pub use init::{
    DepthGrowth, GrowthPlan, GrowthStage, InitPlan, InitScheme, MomentGrowth, ResidualGrowth,
    WidthGrowth,
};
pub use loss::LossPlan;
pub(in crate::config) use optim::decays;
pub use optim::{Group, GroupPlan, OnChange, OptimPlan, Probe, Rule, RuleName, StateDtype};
pub use schedule::{DecayShape, PhaseMode, Schedule, SchedulePlan, ScheduleUnit};
pub use whole::{
    AdafactorPlan, AdamMiniPlan, CamePlan, GalorePlan, MuonPlan, Products, RestPlan, Scaling,
    SoapPlan, StepScale,
};

/// All that a run needs to know, printed at its start and saved with each of its checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The number that all randomness is keyed by.
    pub seed: u64,
    /// The arithmetic.
    pub precision: Precision,
    /// Where to compute.
    pub device: Device,
    /// The run itself.
    pub run: RunPlan,
    /// The model, under its Hugging Face keys.
    pub model: ModelConfig,
    /// What the weights start from.
    #[serde(default)]
    pub init: InitPlan,
    /// A teacher to learn from; none if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distill: Option<DistillPlan>,
    /// What to read.
    pub data: DataPlan,
    /// The shape of a step.
    pub batch: BatchPlan,
    /// The update rule.
    pub optim: OptimPlan,
    /// The learning rate over the steps.
    pub schedule: SchedulePlan,
    /// What is added to the cross-entropy.
    #[serde(default, skip_serializing_if = "LossPlan::is_plain")]
    pub loss: LossPlan,
    /// What to trade for memory.
    pub memory: MemoryPlan,
    /// How layers compute on a GPU.
    #[serde(default)]
    pub gpu: GpuPlan,
    /// How ranks share the work.
    pub parallel: ParallelPlan,
    /// Evaluation; none without validation data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalPlan>,
    /// Checkpoints.
    pub checkpoint: CheckpointPlan,
    /// What happens at a step that goes wrong.
    #[serde(default)]
    pub guard: GuardPlan,
    /// What happens when a rank hangs.
    #[serde(default)]
    pub watchdog: WatchdogPlan,
    /// What is reported.
    pub metrics: MetricsPlan,
    /// Which steps are traced.
    #[serde(default)]
    pub profile: ProfilePlan,
    /// The text drawn at the end of the run; none if not wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<SamplePlan>,
    /// The stages in which the model grows, in order; `model` is the one before them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub growth: Vec<GrowthStage>,
    /// The masks of the stage that this plan is of; none if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Ramp>,
    /// Numbers that follow from the others.
    pub derived: Derived,
}

impl Plan {
    /// The plan as TOML, as it is printed and saved.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a plan holds only TOML types, and its integers fit in i64")
    }

    /// Reads what [`Plan::to_toml`] wrote.
    ///
    /// # Errors
    /// [`ConfigError::SavedPlan`] if the text is not a plan of this version.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error: toml::de::Error| ConfigError::SavedPlan {
            message: error.message().trim_end().replace('\n', ", "),
        })
    }

    /// Checks that the plan can be carried out by this many ranks.
    ///
    /// # Errors
    /// [`ConfigError::Ranks`] if there are more ranks than micro-batches,
    /// [`ConfigError::ShardDegree`] if shard groups do not fill the ranks,
    /// [`ConfigError::GraphsOfRanks`] if micro-steps with calls between ranks were to be recorded.
    pub fn check_ranks(&self, ranks: usize) -> Result<(), ConfigError> {
        assert!(ranks > 0, "a run has at least one rank");
        let (key, micro_batches) = match self.batch.ramp_from {
            Some(first) => ("batch.ramp_from", first),
            None => ("batch.micro_batches", self.batch.micro_batches),
        };
        if micro_batches < ranks as u64 {
            return Err(ConfigError::Ranks { key, micro_batches, ranks: ranks as u64 });
        }
        let shard_degree = self.parallel.shard_degree;
        if shard_degree > 0 && !ranks.is_multiple_of(shard_degree) {
            return Err(ConfigError::ShardDegree { shard_degree, ranks });
        }
        if self.gpu.graphs && ranks > 1 {
            return Err(ConfigError::GraphsOfRanks { ranks });
        }
        Ok(())
    }
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// CUDA where there is a device, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// One CUDA device a rank.
    Cuda,
}

/// `[run]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPlan {
    /// The folder the run writes to, relative to the current directory.
    pub dir: PathBuf,
    /// Number of optimizer steps.
    pub steps: u64,
}

/// `[batch]`: a step is `micro_batches` passes over `[micro_batch_size, sequence_length]` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchPlan {
    /// Predicted tokens of one sequence.
    pub sequence_length: usize,
    /// Sequences of one forward pass.
    pub micro_batch_size: usize,
    /// Micro-batches of one step, over all ranks.
    pub micro_batches: u64,
    /// Steps of a ramp from `ramp_from` to `micro_batches`; 0 for none.
    #[serde(default)]
    pub ramp_steps: u64,
    /// Micro-batches of the ramp's first step; none without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp_from: Option<u64>,
}

impl BatchPlan {
    /// Tokens that the ramp leaves out of `steps` full steps.
    pub(in crate::config) fn left_out(&self, steps: u64) -> u64 {
        let missing = (0..steps.min(self.ramp_steps))
            .map(|step| self.micro_batches.saturating_sub(self.ramp().count(step)));
        let tokens = (self.sequence_length as u64).saturating_mul(self.micro_batch_size as u64);
        missing.sum::<u64>().saturating_mul(tokens)
    }

    /// Micro-batches of every step.
    pub fn ramp(&self) -> grove_optim::BatchRamp {
        let first = self.ramp_from.unwrap_or(self.micro_batches);
        grove_optim::BatchRamp::new(first, self.micro_batches, self.ramp_steps)
            .expect("a plan's ramp was checked when it was resolved")
    }
}

/// `[memory]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// What backward computes again.
    pub recompute: Recompute,
    /// Rows of the head (tokens) whose logits exist at once; above 0.
    pub logits_rows: usize,
    /// Where masters and optimizer state live.
    pub optimizer: Home,
}

/// Where masters and optimizer state live, and where the update runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Home {
    /// Where the layers run.
    Device,
    /// In host memory; Ren et al. 2021 (ZeRO-Offload), arXiv:2101.06840.
    Host,
}

/// What is computed again in backward instead of kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing.
    None,
    /// Norms and activations, but no matrix products.
    Elementwise,
    /// Whole blocks from their inputs; Chen et al. 2016, arXiv:1604.06174.
    Block,
}

/// `[parallel]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParallelPlan {
    /// The ZeRO stage, 0 to 3; Rajbhandari et al. 2020, arXiv:1910.02054.
    pub zero: u64,
    /// Ranks that hold one copy of the sharded state together; 0 for all ranks.
    pub shard_degree: usize,
    /// How gradients are summed.
    pub reduction: Reduction,
    /// Units that stage 3 gathers ahead of their use.
    pub prefetch_units: usize,
    /// Units of at most this many parameters are whole at stage 3 too.
    pub keep_gathered_numel: usize,
    /// What carries tensors between ranks.
    pub backend: Backend,
    /// Threads of a rank; 0 for cores / local ranks, which only the launched ranks know.
    pub threads: usize,
    /// Whether ranks compare their collective calls before each.
    pub check: bool,
}

/// How gradients of micro-batches are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// In the order of micro-batches: equal bits at any number of ranks.
    Exact,
    /// At stages 0 and 1 by rank: one reduction a step, whatever the micro-batches.
    Fast,
}

/// What carries tensors between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// NCCL where every rank has a GPU of its own, else MPI.
    Auto,
    /// MPI; device memory goes through the host.
    Mpi,
    /// NCCL.
    Nccl,
}

/// `[eval]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvalPlan {
    /// Steps between evaluations; 0 for only at the end.
    pub every: u64,
    /// Micro-batches of one evaluation; 0 for the whole validation split.
    pub batches: u64,
}

/// `[metrics]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricsPlan {
    /// Steps between log lines; at least 1.
    pub log_every: u64,
    /// Whether to write TensorBoard files.
    pub tensorboard: bool,
    /// Peak of one rank in 1e12 floating-point operations per second; 0 to measure it at start.
    pub peak_tflops: f64,
}

/// `[profile]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfilePlan {
    /// The first and the last step that are traced; both 0 for none.
    pub steps: [u64; 2],
}

impl ProfilePlan {
    /// Whether `step` is traced.
    pub fn covers(&self, step: u64) -> bool {
        let [first, last] = self.steps;
        step > 0 && (first..=last).contains(&step)
    }
}

/// `[sample]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplePlan {
    /// Tokens of one sample; above 0.
    pub tokens: usize,
    /// The text it continues.
    pub prompt: String,
    /// Divisor of the logits; 0 takes the largest.
    pub temperature: f64,
    /// How many of the largest logits to draw from; 0 for all. None at temperature 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
}

/// `[derived]`: numbers that follow from the rest of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derived {
    /// `sequence_length * micro_batch_size * micro_batches`.
    pub tokens_per_step: u64,
    /// `tokens_per_step * steps`, less what a ramp leaves out.
    pub total_tokens: u64,
    /// Trained parameters; a tied head counts once.
    pub num_parameters: u64,
    /// Model FLOPs of one trained token, forward and backward.
    pub flops_per_token: u64,
    /// Steps of the cooldown: `cooldown_fraction * steps`, rounded, at least 1; 0 but for `wsd`.
    pub cooldown_steps: u64,
}
