//! The run's folder: who may start a run in it, and what a resume goes on from.

use std::fs;

use grove_parallel::Collective;

use crate::checkpoint::{self, AllowedChange, Checkpoint, Damaged, Survey};
use crate::config::{Meaning, OnChange, Plan};
use crate::corpus::{self, Data, Difference};
use crate::error::Error;
use crate::eval_point::masters_to_average;
use crate::growth::start;
use crate::guard::Exclusions;
use crate::rules::Rules;
use crate::run_lock::{NotLocked, RunLock};
use crate::saving::{self, Optimizer};
use crate::state::RunState;
use crate::step_numbers::sum_integers;

/// What a run's folder holds to go on from.
#[derive(Debug, Default)]
pub struct Found {
    /// On rank 0: the right to write the folder, unless its file system has no locks.
    pub lock: Option<RunLock>,
    /// The checkpoint to resume, if the run is to be resumed and there is one.
    pub checkpoint: Option<Checkpoint>,
    /// What the user should be told.
    pub warnings: Vec<String>,
}

/// Prepares the run's folder on rank 0, which runs on `host`, and finds the checkpoint to resume
/// from, if any: the newest whole one, whose content rank 0 has checked.
///
/// # Errors
/// If the folder cannot be made, is written by another process, or holds a run that is not to be
/// resumed; if the newest checkpoint is damaged, unless an older one may be taken and there is one.
///
/// # Collectives
/// A barrier, and for a resume an all-reduce.
pub fn open(plan: &Plan, collective: &dyn Collective, host: &str) -> Result<Found, Error> {
    let mut prepared = Ok(Found::default());
    if collective.rank() == 0 {
        prepared = prepare(plan, host);
    }
    collective.barrier("the run's folder is ready")?.wait()?;
    let mut found = prepared?;
    if !plan.checkpoint.resume {
        return Ok(found);
    }
    let mut chosen = None;
    if collective.rank() == 0 {
        chosen = choose(plan, &mut found.warnings)?;
    }
    // Other ranks bring 0; a step is counted from 1, so that 0 stands for none.
    let step = chosen.map_or(0, |step| step as i64 + 1);
    let step = sum_integers(collective, &[step], "the step of the checkpoint")?[0];
    if step > 0 {
        let folder = checkpoint::folder_of(&plan.run.dir, step as u64 - 1);
        found.checkpoint = Some(Checkpoint::open(&folder)?);
    }
    Ok(found)
}

/// The step of the checkpoint to resume: the newest whose files are what its manifest says.
fn choose(plan: &Plan, warnings: &mut Vec<String>) -> Result<Option<u64>, Error> {
    let dir = &plan.run.dir;
    let Survey { whole, mut damaged } = checkpoint::survey(dir)?;
    let mut chosen = None;
    for candidate in whole.iter().rev() {
        match Checkpoint::open(&candidate.folder).and_then(|checkpoint| checkpoint.verify()) {
            Ok(()) => {
                chosen = Some(candidate.step);
                break;
            }
            Err(error) => damaged.push(Damaged { step: candidate.step, error }),
        }
        if !plan.checkpoint.fallback {
            break;
        }
    }
    damaged.retain(|damaged| chosen.is_none_or(|chosen| damaged.step > chosen));
    damaged.sort_by_key(|damaged| damaged.step);
    let Some(newest) = damaged.last() else {
        if let Some(step) = chosen {
            at_latest(plan, step)?;
        }
        return Ok(chosen);
    };
    let is_damaged = |step| damaged.iter().any(|damaged| damaged.step == step);
    let mut older = whole.iter().rev().map(|whole| whole.step);
    let Some(fallback) = chosen.or_else(|| older.find(|&step| !is_damaged(step))) else {
        return Err(Error::AllDamaged { dir: dir.clone(), damaged });
    };
    if !plan.checkpoint.fallback {
        return Err(Error::NewestDamaged { reason: newest.error.to_string(), fallback });
    }
    warnings.extend(damaged.iter().map(|damaged| format!("{}; it is passed over", damaged.error)));
    if let Some(step) = chosen {
        at_latest(plan, step)?;
    }
    Ok(chosen)
}

/// Points the link to the checkpoint that the run goes on from.
fn at_latest(plan: &Plan, step: u64) -> Result<(), Error> {
    let path = plan.run.dir.join("latest");
    let pointed = checkpoint::point_latest(&plan.run.dir, step);
    pointed.map_err(|source| Error::Io { action: "point to the newest checkpoint", path, source })
}

fn prepare(plan: &Plan, host: &str) -> Result<Found, Error> {
    let dir = &plan.run.dir;
    let io = |action| move |source| Error::Io { action, path: dir.clone(), source };
    fs::create_dir_all(dir).map_err(io("make the run's folder"))?;
    let mut found = Found::default();
    match RunLock::take(dir, host) {
        Ok(lock) => found.lock = Some(lock),
        Err(NotLocked::Held { holder }) => {
            return Err(Error::RunLocked { dir: dir.clone(), holder });
        }
        Err(NotLocked::Io(error)) => found.warnings.push(format!(
            "cannot lock {}: {error}; see to it yourself that no other job writes it",
            dir.display()
        )),
    }
    checkpoint::clear_stale(dir)?;
    let checkpoints = checkpoint::list(dir)?;
    if let (Some(last), false) = (checkpoints.last(), plan.checkpoint.resume) {
        return Err(Error::RunExists {
            dir: dir.clone(),
            checkpoints: checkpoints.len(),
            last_step: last.step,
        });
    }
    Ok(found)
}

/// Writes the plan into the run's folder, once the run is known to go on.
///
/// # Errors
/// If the folder cannot be written to.
pub fn write_plan(plan: &Plan) -> Result<(), Error> {
    let path = plan.run.dir.join("plan.toml");
    fs::write(&path, plan.to_toml()).map_err(|source| Error::Io { action: "write", path, source })
}

/// The newest whole checkpoint of the plan's folder, if there is one.
///
/// # Errors
/// If the folder or the checkpoint cannot be read.
pub fn newest(plan: &Plan) -> Result<Option<Checkpoint>, Error> {
    if !plan.run.dir.exists() {
        return Ok(None);
    }
    let newest = checkpoint::survey(&plan.run.dir)?.whole.pop();
    Ok(newest.map(|whole| Checkpoint::open(&whole.folder)).transpose()?)
}

/// Makes the weights of a mixture before a checkpoint what it says they were; `excluded` is the data
/// that the run leaves out.
///
/// # Errors
/// If the checkpoint's record of them cannot be read.
pub fn keep_past(
    plan: &Plan,
    data: &mut Data,
    checkpoint: &Checkpoint,
    excluded: &Exclusions,
) -> Result<(), Error> {
    let saved = checkpoint.run_state();
    let recorded = corpus::stages_from_toml(&saved.data_stages).map_err(|message| {
        let checkpoint = checkpoint.folder().to_owned();
        Error::DamagedStages { checkpoint, message }
    })?;
    data.keep_past(plan, &recorded, excluded.data_step(saved.step));
    Ok(())
}

/// Fills the state from a checkpoint, once it is known to belong to this plan and data, or its user
/// allows what differs; grown, where it is the last of its stage. `stages` are the plans of all
/// stages of the run. Returns all changes that were ever allowed, oldest first.
///
/// # Errors
/// If the plan means another run, the data is other data, or the tensors do not fit.
pub fn resume(
    stages: &[Plan],
    data: &Data,
    (state, rules): (&mut RunState, &Rules),
    checkpoint: &Checkpoint,
) -> Result<Vec<AllowedChange>, Error> {
    let saved = checkpoint.run_state();
    let (of, after) = (stages[0].stage_of(saved.step), stages[0].stage_after(saved.step));
    let (before, plan) = (Plan::from_toml(&saved.plan_toml)?, &stages[of]);
    let is_allowed = |meaning| plan.checkpoint.allow_changes.contains(&meaning);
    let changes = before.meaning_changes(plan, saved.step);
    let (allowed, refused): (Vec<_>, Vec<_>) =
        changes.into_iter().partition(|change| is_allowed(change.meaning));
    let folder = checkpoint.folder();
    if !refused.is_empty() {
        return Err(Error::PlanChanged { checkpoint: folder.to_owned(), changes: refused });
    }
    let mut allowed: Vec<String> = allowed.into_iter().map(|change| change.text).collect();
    if let Some(difference) = data.difference(&saved.data_fingerprint) {
        let Difference { path, expected, found } = difference;
        if !is_allowed(Meaning::Data) {
            let checkpoint = folder.to_owned();
            return Err(Error::DataChanged { path, checkpoint, expected, found });
        }
        allowed.push(format!("the training data: {expected} -> {found}"));
    }
    let mut history = saved.allowed_changes.clone();
    if !allowed.is_empty() {
        history.push(AllowedChange { step: saved.step, changes: allowed });
    }
    if of < after {
        let entered = &stages[0].growth[of..after];
        start::enter_stages(entered, (state, rules), checkpoint, plan.seed)?;
        return Ok(history);
    }
    let resets =
        plan.optim.on_change == OnChange::Reset && !before.optim.keeps_state_of(&plan.optim);
    let optimizer = if resets { Optimizer::Restarted } else { Optimizer::Resumed };
    saving::load(state, (rules, optimizer), checkpoint)?;
    if resets && let Some(beta1) = before.optim.averaging() {
        masters_to_average(&state.units, checkpoint.optimizer(), beta1)?;
        state.restart_optimizer();
        state.round_masters();
    }
    Ok(history)
}
