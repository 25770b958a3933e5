//! From a configuration as written to a plan: defaults, derived numbers, and every rule between
//! values.

mod checkpoint;
mod data;
mod distill;
mod gpu;
mod guard;
mod init;
mod loss;
mod model;
mod optim;
mod residual;
mod schedule;
mod whole;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, ConfigErrors};
use super::plan::{
    Backend, BatchPlan, DataPlan, Derived, Device, EvalPlan, Home, MemoryPlan, MetricsPlan,
    ParallelPlan, Plan, ProfilePlan, Recompute, Reduction, RunPlan, SamplePlan,
};
use super::run_config::{MemoryTable, RunConfig, SampleTable};
use crate::model::config::Precision;

/// The most that the fp32 logits of one chunk of the head may take where `memory.logits_rows` is 0.
/// Smaller chunks read the head's weight and its gradient more often: at V = 50257 and 768 wide, a
/// row costs a seventh less with 512 rows than with 256.
const LOGITS_BYTES: usize = 128 << 20;

/// The most rows of such a chunk: on 2 CPU cores at V = 8192 the head takes 72, 70, 66 ms with 512,
/// 1024 and all 2048 rows.
const LOGITS_ROWS: usize = 2048;

/// Up to so many parameters a unit is left whole at stage 3, unless the file says otherwise: a
/// gather takes as long as many of its kind together.
const KEEP_GATHERED_NUMEL: usize = 100_000;

/// Fills in defaults and checks every value.
///
/// # Errors
/// Every rule that a value breaks.
pub(super) fn resolve(config: &RunConfig) -> Result<Plan, ConfigErrors> {
    let mut problems = Problems(Vec::new());
    let batch = batch(config, &mut problems);
    let scheme = config.init.scheme.unwrap_or_default();
    let model = model::resolve(&config.model, scheme, batch.sequence_length, &mut problems);
    let Some(model) = model else {
        return Err(ConfigErrors { problems: problems.0 });
    };
    let spec = model.spec();
    let data = data::resolve(config, &model, &batch, &mut problems);
    let steps = config.run.steps;
    problems.require(steps > 0, "run.steps", steps, "must be above 0", "train for 1 step or more");
    let optim = optim::resolve(&config.optim, &spec, &mut problems);
    let (schedule, cooldown_steps) =
        schedule::resolve(&config.schedule, steps, optim.decays(), &mut problems);
    let loss = loss::resolve(&config.loss, &mut problems);
    let plan = Plan {
        seed: config.seed.unwrap_or(1),
        precision: config.precision.unwrap_or(Precision::Bf16),
        device: config.device.unwrap_or(Device::Auto),
        run: RunPlan { dir: run_dir(config), steps },
        optim,
        schedule,
        memory: memory(&config.memory, spec.vocab_size, &batch, &mut problems),
        gpu: gpu::resolve(config, data.mask_documents, &mut problems),
        parallel: parallel(config, &mut problems),
        eval: data.has_validation().then(|| EvalPlan {
            every: config.eval.every.unwrap_or(0),
            batches: config.eval.batches.unwrap_or(0),
        }),
        checkpoint: checkpoint::resolve(&config.checkpoint, &mut problems),
        guard: guard::guard(&config.guard, &mut problems),
        watchdog: guard::watchdog(&config.watchdog, &mut problems),
        metrics: metrics(config, &mut problems),
        profile: profile(config, &mut problems),
        sample: sample(&config.sample, &data, spec.vocab_size, &mut problems),
        derived: Derived {
            num_parameters: spec.num_parameters(),
            flops_per_token: spec.flops_per_token(batch.sequence_length),
            cooldown_steps,
            ..tokens(&batch, steps, &mut problems)
        },
        distill: distill::resolve(&config.distill, steps, &loss, &mut problems),
        loss,
        init: init::resolve(&config.init, &mut problems),
        ramp: None,
        growth: init::stages(config, (&model, steps), batch.sequence_length, &mut problems),
        model,
        data,
        batch,
    };
    if problems.0.is_empty() { Ok(plan) } else { Err(ConfigErrors { problems: problems.0 }) }
}

/// The rules found broken so far.
struct Problems(Vec<ConfigError>);

impl Problems {
    /// Notes `key = found problem; remedy` unless the rule `holds`.
    fn require(
        &mut self,
        holds: bool,
        key: &str,
        found: impl Display,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        if !holds {
            self.0.push(ConfigError::Invalid {
                key: key.to_owned(),
                found: found.to_string(),
                problem: problem.into(),
                remedy: remedy.into(),
            });
        }
    }

    /// Notes a number that is not above 0.
    fn require_positive(&mut self, key: &str, value: f64, remedy: &str) {
        self.require(value > 0.0, key, Shown(value), "must be above 0", remedy);
    }

    /// Notes a number below 0.
    fn require_not_negative(&mut self, key: &str, value: f64, remedy: &str) {
        self.require(value >= 0.0, key, Shown(value), "must be at least 0", remedy);
    }
}

/// A number as TOML writes it: `1e-8`, not `0.00000001`.
struct Shown(f64);

impl Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

fn run_dir(config: &RunConfig) -> PathBuf {
    let stem = || config.file.file_stem().map_or_else(|| Path::new("run"), Path::new);
    config.run.dir.clone().unwrap_or_else(|| Path::new("runs").join(stem()))
}

fn batch(config: &RunConfig, problems: &mut Problems) -> BatchPlan {
    let batch = &config.batch;
    let sizes = [
        ("batch.sequence_length", batch.sequence_length as u64),
        ("batch.micro_batch_size", batch.micro_batch_size as u64),
        ("batch.micro_batches", batch.micro_batches),
    ];
    for (key, size) in sizes {
        problems.require(size > 0, key, size, "must be above 0", "use 1 or more");
    }
    let ramp_steps = batch.ramp_steps.unwrap_or(0);
    let ramp_from = (ramp_steps > 0).then(|| batch.ramp_from.unwrap_or(1));
    if let Some(ramp_from) = ramp_from {
        problems.require(
            (1..=batch.micro_batches.max(1)).contains(&ramp_from),
            "batch.ramp_from",
            ramp_from,
            format!("must be at least 1 and at most batch.micro_batches = {}", batch.micro_batches),
            "use about a sixteenth of batch.micro_batches, and no fewer than there are ranks",
        );
    }
    BatchPlan {
        sequence_length: batch.sequence_length,
        micro_batch_size: batch.micro_batch_size,
        micro_batches: batch.micro_batches,
        ramp_steps,
        ramp_from,
    }
}

/// Tokens of a step and of the run; both must fit in TOML's integers.
fn tokens(batch: &BatchPlan, steps: u64, problems: &mut Problems) -> Derived {
    let per_step = (batch.sequence_length as u64)
        .checked_mul(batch.micro_batch_size as u64)
        .and_then(|tokens| tokens.checked_mul(batch.micro_batches));
    let left_out = match problems.0.is_empty() {
        true => batch.left_out(steps),
        false => 0,
    };
    let total = per_step.and_then(|tokens| tokens.checked_mul(steps)?.checked_sub(left_out));
    let total = total.filter(|tokens| i64::try_from(*tokens).is_ok());
    problems.require(
        total.is_some(),
        "run.steps",
        steps,
        "times the tokens of a step is 2^63 or more",
        "use fewer steps or smaller batches",
    );
    Derived {
        tokens_per_step: per_step.unwrap_or(0),
        total_tokens: total.unwrap_or(0),
        num_parameters: 0,
        flops_per_token: 0,
        cooldown_steps: 0,
    }
}

fn memory(
    table: &MemoryTable,
    vocab_size: usize,
    batch: &BatchPlan,
    problems: &mut Problems,
) -> MemoryPlan {
    let all_rows = batch.sequence_length.saturating_mul(batch.micro_batch_size);
    let written = table.logits_rows.unwrap_or(0);
    problems.require(
        written <= all_rows,
        "memory.logits_rows",
        written,
        format!("is above batch.sequence_length * batch.micro_batch_size = {all_rows}"),
        format!("use {all_rows} for all rows at once, or 0 to have it chosen"),
    );
    let logits_rows = if written > 0 { written } else { chosen_rows(vocab_size, all_rows) };
    MemoryPlan {
        recompute: table.recompute.unwrap_or(Recompute::None),
        logits_rows,
        optimizer: table.optimizer.unwrap_or(Home::Device),
    }
}

/// The largest power of two of rows whose fp32 logits take at most [`LOGITS_BYTES`], but no more
/// than [`LOGITS_ROWS`] and than there are. At V = 50257: `2^27 / (4 * 50257) = 667`, so 512.
fn chosen_rows(vocab_size: usize, all_rows: usize) -> usize {
    let fitting = (LOGITS_BYTES / vocab_size.saturating_mul(size_of::<f32>()).max(1)).max(1);
    (1 << fitting.ilog2()).min(LOGITS_ROWS).min(all_rows)
}

fn parallel(config: &RunConfig, problems: &mut Problems) -> ParallelPlan {
    let table = &config.parallel;
    let zero = table.zero.unwrap_or(0);
    let remedy = "use 0 (nothing sharded), 1 (optimizer), 2 (and gradients) or 3 (and parameters)";
    problems.require(zero <= 3, "parallel.zero", zero, "is not a ZeRO stage", remedy);
    let shard_degree = table.shard_degree.unwrap_or(0);
    problems.require(
        shard_degree == 0 || zero > 0,
        "parallel.shard_degree",
        shard_degree,
        "has no effect at parallel.zero = 0, where nothing is sharded",
        "remove it, or set parallel.zero to 1, 2 or 3",
    );
    ParallelPlan {
        zero,
        shard_degree,
        reduction: table.reduction.unwrap_or(Reduction::Exact),
        prefetch_units: table.prefetch_units.unwrap_or(1),
        keep_gathered_numel: table.keep_gathered_numel.unwrap_or(KEEP_GATHERED_NUMEL),
        backend: table.backend.unwrap_or(Backend::Auto),
        threads: table.threads.unwrap_or(0),
        check: table.check.unwrap_or(true),
    }
}

fn metrics(config: &RunConfig, problems: &mut Problems) -> MetricsPlan {
    let table = &config.metrics;
    let log_every = table.log_every.unwrap_or(10);
    let remedy = "use 1 to log every step";
    problems.require(log_every > 0, "metrics.log_every", log_every, "must be above 0", remedy);
    let peak_tflops = table.peak_tflops.unwrap_or(0.0);
    problems.require_not_negative("metrics.peak_tflops", peak_tflops, "use 0 to have it measured");
    MetricsPlan { log_every, tensorboard: table.tensorboard.unwrap_or(true), peak_tflops }
}

fn profile(config: &RunConfig, problems: &mut Problems) -> ProfilePlan {
    let [first, last] = config.profile.steps.unwrap_or([0, 0]);
    let (none, steps) = ([first, last] == [0, 0], config.run.steps);
    problems.require(
        none || (1..=last).contains(&first) && last <= steps,
        "profile.steps",
        format!("[{first}, {last}]"),
        format!("is not a range of steps in 1..={steps}"),
        "name the first and the last step to trace, such as [10, 12], or [0, 0] for none",
    );
    ProfilePlan { steps: [first, last] }
}

fn sample(
    table: &SampleTable,
    data: &DataPlan,
    vocab_size: usize,
    problems: &mut Problems,
) -> Option<SamplePlan> {
    let tokens = table.tokens.filter(|tokens| *tokens > 0)?;
    problems.require(
        data.tokenizer.is_some(),
        "sample.tokens",
        tokens,
        "needs a tokenizer for the prompt",
        "set data.tokenizer to \"bytes\" or a file",
    );
    let prompt = table.prompt.clone().unwrap_or_else(|| "\n".to_owned());
    let remedy = "set text to continue, such as \"\\n\"";
    problems.require(!prompt.is_empty(), "sample.prompt", "\"\"", "must not be empty", remedy);
    let temperature = table.temperature.unwrap_or(0.8);
    problems.require_not_negative("sample.temperature", temperature, "use 0 for the largest logit");
    let top_k = table.top_k.unwrap_or(0);
    problems.require(
        top_k <= vocab_size,
        "sample.top_k",
        top_k,
        format!("is above model.vocab_size = {vocab_size}"),
        "use 0 to draw from all",
    );
    let top_k = (temperature > 0.0).then_some(top_k);
    Some(SamplePlan { tokens, prompt, temperature, top_k })
}
