//! `grove ckpt`: what checkpoints hold, whether they are whole, and which of them stay.

use std::io::Write;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;

use super::shown::{age, bytes};
use crate::checkpoint::{
    Checkpoint, Condition, Item, Keep, SettingDifference, TensorDifference, TensorFile, TensorSpec,
    diff, faults, hash_masters, inventory, latest, remove_all, superfluous,
};
use crate::model::config::ModelConfig;

/// `grove ckpt`.
#[derive(Debug, Subcommand)]
pub enum Ckpt {
    /// List the checkpoints of a run: step, size, age, whole or damaged and why.
    Ls {
        /// The run's folder.
        run: PathBuf,
    },
    /// Say what a checkpoint holds.
    Show {
        /// The checkpoint's folder, or a run's (its newest checkpoint).
        checkpoint: PathBuf,
        /// List every tensor.
        #[arg(long)]
        tensors: bool,
    },
    /// Read everything, and name all that is wrong; exit code 1 if anything is.
    Verify {
        /// A checkpoint's folder, or a run's (all its checkpoints).
        path: PathBuf,
    },
    /// Say in what two checkpoints differ; exit code 0 all the same.
    Diff {
        /// A checkpoint's folder, or a run's (its newest checkpoint).
        a: PathBuf,
        /// Another.
        b: PathBuf,
    },
    /// Remove old checkpoints of a run that is not running.
    Prune {
        /// The run's folder.
        run: PathBuf,
        /// How many of the newest stay; at least 1.
        #[arg(long)]
        keep_last: usize,
        /// Those whose step is a multiple of this stay too.
        #[arg(long)]
        keep_every: Option<NonZeroU64>,
        /// Only say what would go.
        #[arg(long)]
        dry_run: bool,
    },
    /// One sha256 over all master weights in the order of their names.
    Hash {
        /// The checkpoint's folder.
        folder: PathBuf,
    },
}

impl Ckpt {
    /// Prints what was asked.
    ///
    /// # Errors
    /// If a folder holds no checkpoint, or `verify` finds a fault.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        match self {
            Self::Ls { run } => ls(run, out),
            Self::Show { checkpoint, tensors } => show(&open(checkpoint)?, *tensors, out),
            Self::Verify { path } => verify(path, out),
            Self::Diff { a, b } => say_difference(&open(a)?, &open(b)?, out),
            Self::Prune { run, keep_last, keep_every, dry_run } => {
                ensure!(*keep_last > 0, "--keep-last 0 would leave no checkpoint; use 1 or more");
                prune(run, Keep { last: *keep_last, every: *keep_every }, *dry_run, out)
            }
            Self::Hash { folder } => {
                let hash = hash_masters(folder);
                let hash = hash.with_context(|| format!("no hash of {}", folder.display()))?;
                Ok(writeln!(out, "{hash}")?)
            }
        }
    }
}

/// A checkpoint, or the newest one of a run.
fn open(path: &Path) -> Result<Checkpoint> {
    let folder = latest(path)?.map_or_else(|| path.to_owned(), |newest| newest.folder);
    Ok(Checkpoint::open(&folder)?)
}

fn ls(run: &Path, out: &mut dyn Write) -> Result<()> {
    let items = inventory(run)?;
    ensure!(!items.is_empty(), "{} holds no checkpoints; expected a run's folder", run.display());
    let newest = latest(run)?.map(|newest| newest.folder);
    let now = SystemTime::now();
    writeln!(out, "{:>12}  {:>10}  {:>8}  state", "step", "size", "age")?;
    for Item { step, folder, bytes: size, written, condition } in items {
        let state = match condition {
            Condition::Whole if newest.as_ref() == Some(&folder) => "whole, latest".to_owned(),
            Condition::Whole => "whole".to_owned(),
            Condition::Damaged(error) => format!("damaged: {error}"),
            Condition::Unfinished => "being written or removed, or left so".to_owned(),
            Condition::Replaced => "being replaced, or left so".to_owned(),
        };
        let age = age(now.duration_since(written).unwrap_or_default());
        writeln!(out, "{step:>12}  {:>10}  {age:>8}  {state}", bytes(size))?;
    }
    Ok(())
}

fn show(checkpoint: &Checkpoint, every_tensor: bool, out: &mut dyn Write) -> Result<()> {
    let state = checkpoint.run_state();
    let config = ModelConfig::from_hf_json(&checkpoint.config_json()?)?;
    let spec = config.spec();
    writeln!(out, "{}", checkpoint.folder().display())?;
    writeln!(out, "step {}, {} tokens", state.step, state.num_tokens)?;
    let (flops, version) = (state.total_flops as f64, &state.program_version);
    writeln!(out, "{flops:.3e} FLOPs, written by grove {version}, seed {}", state.seed)?;
    let (family, params) = (config.model_type(), spec.num_parameters());
    let (layers, width, positions) = (spec.num_layers, spec.hidden_size, spec.max_positions);
    writeln!(
        out,
        "model: {family}, {params} parameters, {layers} layers of width {width}, {positions} \
         positions"
    )?;
    writeln!(out, "plan: {}", plan_summary(&state.plan_toml))?;
    let kinds =
        [("model", checkpoint.model()), ("masters", checkpoint.masters())].map(|(kind, file)| {
            let specs = file.tensors().map(|view| view.spec);
            (kind.to_owned(), specs.collect::<Vec<_>>())
        });
    for (kind, specs) in kinds.into_iter().chain(states(checkpoint.optimizer())) {
        let size: u64 = specs.iter().map(|spec| spec.len_bytes() as u64).sum();
        writeln!(out, "{kind}: {} tensors, {}", specs.len(), bytes(size))?;
        for spec in specs.iter().filter(|_| every_tensor) {
            writeln!(out, "  {} {spec}", spec.name)?;
        }
    }
    Ok(())
}

/// The plan's main keys. Read as a table, so that a plan of another version can be shown too.
fn plan_summary(plan_toml: &str) -> String {
    const SHOWN: [&str; 7] = [
        "run.steps",
        "precision",
        "batch.sequence_length",
        "derived.tokens_per_step",
        "optim.rule",
        "optim.lr",
        "schedule.kind",
    ];
    if plan_toml.is_empty() {
        return "none, the model was imported".to_owned();
    }
    let plan: toml::Table = match toml::from_str(plan_toml) {
        Ok(plan) => plan,
        Err(error) => return format!("not readable, {}", error.message()),
    };
    let value = |key: &str| {
        let (table, leaf) = key.split_once('.').unwrap_or(("", key));
        let table = if table.is_empty() { Some(&plan) } else { plan.get(table)?.as_table() };
        Some(format!("{key} = {}", table?.get(leaf)?))
    };
    SHOWN.into_iter().filter_map(value).collect::<Vec<_>>().join(", ")
}

/// The optimizer's tensors by the kind of state, the part of their names before the first `/`.
fn states(file: &TensorFile) -> Vec<(String, Vec<&TensorSpec>)> {
    let mut kinds: Vec<(String, Vec<&TensorSpec>)> = Vec::new();
    for view in file.tensors() {
        let kind = view.spec.name.split('/').next().unwrap_or_default();
        match kinds.iter_mut().find(|(known, _)| known == kind) {
            Some((_, specs)) => specs.push(view.spec),
            None => kinds.push((kind.to_owned(), vec![view.spec])),
        }
    }
    kinds
}

fn verify(path: &Path, out: &mut dyn Write) -> Result<()> {
    let mut folders: Vec<PathBuf> = inventory(path)?
        .into_iter()
        .filter(|item| matches!(item.condition, Condition::Whole | Condition::Damaged(_)))
        .map(|item| item.folder)
        .collect();
    if folders.is_empty() {
        folders.push(path.to_owned());
    }
    let mut num_damaged = 0;
    for folder in &folders {
        let found = faults(folder)?;
        if found.is_empty() {
            writeln!(out, "{}: whole", folder.display())?;
            continue;
        }
        num_damaged += 1;
        writeln!(out, "{}: damaged", folder.display())?;
        for fault in found {
            writeln!(out, "  {fault}")?;
        }
    }
    if num_damaged > 0 {
        bail!("{num_damaged} of {} checkpoints are damaged; use an earlier one", folders.len());
    }
    Ok(())
}

fn say_difference(a: &Checkpoint, b: &Checkpoint, out: &mut dyn Write) -> Result<()> {
    let difference = diff(a, b);
    for SettingDifference { key, values } in &difference.settings {
        let [a, b] = values.each_ref().map(|value| value.as_deref().unwrap_or("not set"));
        writeln!(out, "{key}: {a} -> {b}")?;
    }
    for tensor in &difference.tensors {
        match tensor {
            TensorDifference::Form { name, specs } => {
                let [a, b] = specs.each_ref().map(|spec| {
                    spec.as_ref().map_or_else(|| "not there".to_owned(), ToString::to_string)
                });
                writeln!(out, "{name}: {a} -> {b}")?;
            }
            TensorDifference::Values { spec, num_different, max_abs, max_relative } => writeln!(
                out,
                "{} {spec}: {num_different} values differ, by at most {max_abs:.3e}, relatively \
                 {max_relative:.3e}",
                spec.name
            )?,
        }
    }
    let (settings, tensors) = (difference.settings.len(), difference.tensors.len());
    let equal = difference.num_equal_tensors;
    writeln!(out, "{settings} settings differ, {tensors} tensors differ, {equal} are equal")?;
    Ok(())
}

fn prune(run: &Path, keep: Keep, dry_run: bool, out: &mut dyn Write) -> Result<()> {
    let doomed = superfluous(run, keep)?;
    if !dry_run {
        remove_all(run, &doomed)?;
    }
    let verb = if dry_run { "would remove" } else { "removed" };
    for whole in &doomed {
        writeln!(out, "{verb} {}", whole.folder.display())?;
    }
    writeln!(out, "{verb} {} checkpoints", doomed.len())?;
    Ok(())
}
