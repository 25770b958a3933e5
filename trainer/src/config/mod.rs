//! One TOML file, as written, becomes one [`Plan`], as resolved.
//!
//! [`load`] reads the file and what it `extends`, lays `--set key=value` overrides over it, refuses
//! what is unknown, mistyped, missing or without effect, fills in the defaults and checks every
//! number against the others. After start-up the rest of the trainer sees only the [`Plan`].
//!
//! - **Layers.** `extends = "base.toml"` is relative to the file that says so, and goes through any
//!   number of files. A later layer replaces single keys, not whole tables. Keys of a lower layer
//!   that a later layer makes pointless go with what it replaces: `--set optim.rule=lion` drops the
//!   file's `optim.eps`, and `data.text` drops a lower layer's `data.tokens`. Within one layer the
//!   same is an error.
//! - **Paths** of files to read are relative to the current directory, like those of every
//!   command-line tool; a path that does not exist there but does beside the config file that wrote
//!   it means that one. Whether data files exist is checked when they are opened.
//! - **Keys** are listed with type, default and meaning in `configs/reference.toml`, which a test
//!   holds equal to the code.

mod changes;
mod check;
mod error;
mod layers;
mod near;
mod plan;
mod resolve;
mod run_config;
mod schema;
mod stages;
mod tables;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use crate::model::config::Precision;
pub use changes::{Change, how_to_allow};
pub use error::{ConfigError, ConfigErrors};
pub use plan::{
    AdafactorPlan, AdamMiniPlan, AttentionChoice, Backend, BatchPlan, CamePlan, CheckpointPlan,
    DataPlan, DataSource, DecayShape, DepthGrowth, Derived, Device, DistillDecay, DistillPlan,
    EvalPlan, GalorePlan, GpuPlan, Group, GroupPlan, GrowthPlan, GrowthStage, GuardPlan, Home,
    InitPlan, InitScheme, LossPlan, Meaning, MemoryPlan, MetricsPlan, MomentGrowth, MuonPlan,
    OnChange, OptimPlan, Packing, ParallelPlan, PhaseMode, Plan, Policy, Probe, Products,
    ProfilePlan, Recompute, Reduction, ResidualGrowth, RestPlan, Rule, RuleName, RunPlan,
    SamplePlan, Scaling, Schedule, SchedulePlan, ScheduleUnit, SoapPlan, SourcePlan, StagePlan,
    StateDtype, StepScale, Tokenizer, Validation, WatchdogPlan, WidthGrowth,
};
use run_config::RunConfig;

/// Reads a run's TOML file, lays `overrides` (each `key=value`) over it, and resolves it.
///
/// # Errors
/// [`ConfigErrors`] with every problem of the first stage that finds any: reading; then keys and
/// types; then values.
pub fn load(file: &Path, overrides: &[String]) -> Result<Plan, ConfigErrors> {
    resolve::resolve(&RunConfig::read(file, overrides)?)
}
