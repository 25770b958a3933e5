//! A run as the user wrote it: the TOML file's tables, with nothing filled in.

mod data;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Table;

use super::check::check;
use super::error::{ConfigError, ConfigErrors};
use super::layers::Settings;
use super::stages::{GrowthStageTable, InitTable};
use super::{
    AttentionChoice, Backend, DecayShape, Device, DistillDecay, Home, Meaning, OnChange, PhaseMode,
    Policy, Probe, Products, Recompute, Reduction, RuleName, Scaling, ScheduleUnit, StateDtype,
    StepScale,
};
use crate::model::config::{BranchGain, NormPlacement, Parametrization, Precision};
use crate::model::fp8::Fp8;

pub(super) use data::{DataTable, SourceTable, StageTable};

/// One configuration file as written, after `extends` and overrides, before defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunConfig {
    /// The run's own file, which names its default folder.
    #[serde(skip)]
    pub(super) file: PathBuf,
    pub(super) seed: Option<u64>,
    pub(super) precision: Option<Precision>,
    pub(super) device: Option<Device>,
    pub(super) run: RunTable,
    pub(super) model: ModelTable,
    #[serde(default)]
    pub(super) init: InitTable,
    #[serde(default)]
    pub(super) growth: Vec<GrowthStageTable>,
    #[serde(default)]
    pub(super) distill: DistillTable,
    /// `[model]` as written, which stages change.
    #[serde(skip)]
    pub(super) written_model: Table,
    #[serde(default)]
    pub(super) data: DataTable,
    pub(super) batch: BatchTable,
    #[serde(default)]
    pub(super) optim: OptimTable,
    #[serde(default)]
    pub(super) schedule: ScheduleTable,
    #[serde(default)]
    pub(super) loss: LossTable,
    #[serde(default)]
    pub(super) memory: MemoryTable,
    #[serde(default)]
    pub(super) gpu: GpuTable,
    #[serde(default)]
    pub(super) parallel: ParallelTable,
    #[serde(default)]
    pub(super) eval: EvalTable,
    #[serde(default)]
    pub(super) checkpoint: CheckpointTable,
    #[serde(default)]
    pub(super) guard: GuardTable,
    #[serde(default)]
    pub(super) watchdog: WatchdogTable,
    #[serde(default)]
    pub(super) metrics: MetricsTable,
    #[serde(default)]
    pub(super) profile: ProfileTable,
    #[serde(default)]
    pub(super) sample: SampleTable,
}

impl RunConfig {
    /// Reads a file with all that it extends, and lays the overrides over it.
    ///
    /// # Errors
    /// Every key that is unknown, of the wrong type, missing or without effect; or the first
    /// unreadable file or override.
    pub(super) fn read(file: &Path, overrides: &[String]) -> Result<Self, ConfigErrors> {
        let mut settings = Settings::read(file, overrides)?;
        let problems = check(&mut settings, file);
        if !problems.is_empty() {
            return Err(ConfigErrors { problems });
        }
        let table = settings.to_table();
        let written_model = table.get("model").and_then(|model| model.as_table().cloned());
        let mut config: Self = table.try_into().map_err(|error: toml::de::Error| {
            let message = error.message().to_owned();
            ConfigError::SchemaBehind { path: file.to_owned(), message }
        })?;
        config.file = file.to_owned();
        config.written_model = written_model.unwrap_or_default();
        Ok(config)
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunTable {
    pub(super) dir: Option<PathBuf>,
    pub(super) steps: u64,
}

/// The keys of both families; the schema has refused those of the other one.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelTable {
    pub(super) model_type: Family,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: Option<usize>,
    pub(super) intermediate_size: Option<usize>,
    pub(super) num_hidden_layers: Option<usize>,
    pub(super) num_attention_heads: Option<usize>,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: Option<usize>,
    pub(super) rms_norm_eps: Option<f64>,
    pub(super) rope_theta: Option<f64>,
    pub(super) rope_scaling: Option<RopeTable>,
    #[serde(rename = "hidden_act")]
    pub(super) _hidden_act: Option<String>,
    pub(super) n_positions: Option<usize>,
    pub(super) n_embd: Option<usize>,
    pub(super) n_layer: Option<usize>,
    pub(super) n_head: Option<usize>,
    pub(super) n_inner: Option<usize>,
    pub(super) layer_norm_epsilon: Option<f64>,
    #[serde(rename = "activation_function")]
    pub(super) _activation_function: Option<String>,
    pub(super) tie_word_embeddings: Option<bool>,
    pub(super) initializer_range: Option<f64>,
    pub(super) residual: Option<ResidualTable>,
    pub(super) parametrization: Option<Parametrization>,
    pub(super) base_hidden_size: Option<usize>,
    pub(super) base_head_dim: Option<usize>,
    pub(super) base_num_hidden_layers: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RopeTable {
    pub(super) rope_type: Option<String>,
    pub(super) factor: Option<f64>,
    pub(super) original_max_position_embeddings: Option<usize>,
    pub(super) beta_fast: Option<f64>,
    pub(super) beta_slow: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResidualTable {
    pub(super) norm: Option<NormPlacement>,
    pub(super) gain: Option<BranchGain>,
    pub(super) skip: Option<f64>,
    pub(super) scalar_biases: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Family {
    Llama,
    Gpt2,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DistillTable {
    pub(super) teacher: Option<PathBuf>,
    pub(super) weight: Option<f64>,
    pub(super) steps: Option<u64>,
    pub(super) decay: Option<DistillDecay>,
    pub(super) temperature: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchTable {
    pub(super) sequence_length: usize,
    pub(super) micro_batch_size: usize,
    pub(super) micro_batches: u64,
    pub(super) ramp_steps: Option<u64>,
    pub(super) ramp_from: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OptimTable {
    pub(super) rule: Option<RuleName>,
    pub(super) lr: Option<f64>,
    pub(super) betas: Option<[f64; 2]>,
    pub(super) eps: Option<f64>,
    pub(super) state_dtype: Option<StateDtype>,
    pub(super) weight_decay: Option<f64>,
    pub(super) clip_norm: Option<f64>,
    pub(super) gamma: Option<f64>,
    pub(super) hessian_every: Option<u64>,
    pub(super) hessian_clip_norm: Option<f64>,
    pub(super) probe: Option<Probe>,
    pub(super) on_change: Option<OnChange>,
    pub(super) decay_power: Option<f64>,
    pub(super) eps1: Option<f64>,
    pub(super) eps2: Option<f64>,
    pub(super) clip_threshold: Option<f64>,
    pub(super) step_scale: Option<StepScale>,
    pub(super) beta3: Option<f64>,
    pub(super) momentum: Option<f64>,
    pub(super) nesterov: Option<bool>,
    pub(super) num_iterations: Option<u64>,
    pub(super) scaling: Option<Scaling>,
    pub(super) products: Option<Products>,
    pub(super) rank: Option<u64>,
    pub(super) scale: Option<f64>,
    pub(super) refresh_every: Option<u64>,
    pub(super) covariance_beta: Option<f64>,
    pub(super) max_basis_dim: Option<u64>,
    #[serde(default)]
    pub(super) rest: RestTable,
    #[serde(default)]
    pub(super) groups: GroupTables,
}

/// What parameters get that the rule does not take.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RestTable {
    pub(super) lr: Option<f64>,
    pub(super) betas: Option<[f64; 2]>,
    pub(super) eps: Option<f64>,
    pub(super) weight_decay: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GroupTables {
    pub(super) matrix: GroupTable,
    pub(super) embedding: GroupTable,
    pub(super) norm: GroupTable,
    pub(super) bias: GroupTable,
    pub(super) head: GroupTable,
    pub(super) scalar: GroupTable,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupTable {
    pub(super) rule: Option<RuleName>,
    pub(super) lr_multiplier: Option<f64>,
    pub(super) weight_decay_multiplier: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScheduleTable {
    pub(super) kind: Option<ScheduleName>,
    pub(super) warmup_steps: Option<u64>,
    pub(super) final_ratio: Option<f64>,
    pub(super) cooldown_fraction: Option<f64>,
    pub(super) by: Option<ScheduleUnit>,
    pub(super) mode: Option<PhaseMode>,
    pub(super) from_step: Option<u64>,
    pub(super) rewind_to: Option<u64>,
    pub(super) rewarm_steps: Option<u64>,
    pub(super) weight_decay: Option<DecayShape>,
    pub(super) weight_decay_final_ratio: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ScheduleName {
    Constant,
    Cosine,
    Linear,
    InverseSqrt,
    Wsd,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LossTable {
    pub(super) z_loss: Option<f64>,
    pub(super) label_smoothing: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemoryTable {
    pub(super) recompute: Option<Recompute>,
    pub(super) logits_rows: Option<usize>,
    pub(super) optimizer: Option<Home>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GpuTable {
    pub(super) fused: Option<bool>,
    pub(super) attention: Option<AttentionChoice>,
    pub(super) fp8: Option<Fp8>,
    pub(super) graphs: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ParallelTable {
    pub(super) zero: Option<u64>,
    pub(super) shard_degree: Option<usize>,
    pub(super) reduction: Option<Reduction>,
    pub(super) prefetch_units: Option<usize>,
    pub(super) keep_gathered_numel: Option<usize>,
    pub(super) backend: Option<Backend>,
    pub(super) threads: Option<usize>,
    pub(super) check: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvalTable {
    pub(super) every: Option<u64>,
    pub(super) batches: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckpointTable {
    pub(super) every: Option<u64>,
    pub(super) keep_last: Option<u64>,
    pub(super) keep_every: Option<u64>,
    pub(super) max_shard_bytes: Option<u64>,
    pub(super) grace_seconds: Option<u64>,
    pub(super) resume: Option<bool>,
    pub(super) fallback: Option<bool>,
    pub(super) allow_changes: Option<Vec<Meaning>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuardTable {
    pub(super) non_finite: Option<Policy>,
    pub(super) spike_zscore: Option<f64>,
    pub(super) spike: Option<Policy>,
    pub(super) spike_window: Option<usize>,
    pub(super) max_trips: Option<u64>,
    pub(super) snapshot_every: Option<u64>,
    pub(super) exclude_steps: Option<Vec<u64>>,
    pub(super) black_box: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchdogTable {
    pub(super) stall_seconds: Option<f64>,
    pub(super) beat_seconds: Option<f64>,
    pub(super) address: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetricsTable {
    pub(super) log_every: Option<u64>,
    pub(super) tensorboard: Option<bool>,
    pub(super) peak_tflops: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProfileTable {
    pub(super) steps: Option<[u64; 2]>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SampleTable {
    pub(super) tokens: Option<usize>,
    pub(super) prompt: Option<String>,
    pub(super) temperature: Option<f64>,
    pub(super) top_k: Option<usize>,
}
