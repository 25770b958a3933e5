//! The run's folder: who may start a run in it, and what a resume goes on from.

use std::fs;

use grove_data::Stage;
use grove_parallel::Collective;

use crate::checkpoint::{self, Checkpoint, Damaged};
use crate::config::{OnChange, Plan};
use crate::corpus::{self, Data, Difference};
use crate::error::Error;
use crate::eval_point::masters_to_average;
use crate::growth::start;
use crate::rules::Rules;
use crate::saving::{self, Optimizer};
use crate::state::RunState;

/// What a run's folder holds to go on from.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest whole checkpoint, if the run is to be resumed and there is one.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that cannot be used.
    pub damaged: Vec<Damaged>,
}

/// Prepares the run's folder on rank 0 and finds the checkpoint to resume from, if any.
///
/// # Errors
/// If the folder cannot be made, holds a run that is not to be resumed, or a checkpoint whose
/// content is not what its manifest says (which rank 0 checks).
///
/// # Collectives
/// A barrier.
pub fn open(plan: &Plan, collective: &dyn Collective) -> Result<Found, Error> {
    let mut prepared = Ok(());
    if collective.rank() == 0 {
        prepared = prepare(plan);
    }
    collective.barrier("the run's folder is ready")?.wait()?;
    prepared?;
    if !plan.checkpoint.resume {
        return Ok(Found::default());
    }
    let mut survey = checkpoint::survey(&plan.run.dir)?;
    let newest = survey.whole.pop();
    let step = newest.as_ref().map_or(0, |whole| whole.step);
    survey.damaged.retain(|damaged| damaged.step > step);
    if newest.is_none() && !survey.damaged.is_empty() {
        return Err(Error::AllDamaged { dir: plan.run.dir.clone(), damaged: survey.damaged });
    }
    let checkpoint = newest.map(|whole| Checkpoint::open(&whole.folder)).transpose()?;
    if let (Some(checkpoint), 0) = (&checkpoint, collective.rank()) {
        checkpoint.verify()?;
    }
    Ok(Found { checkpoint, damaged: survey.damaged })
}

fn prepare(plan: &Plan) -> Result<(), Error> {
    let dir = &plan.run.dir;
    let io = |action| move |source| Error::Io { action, path: dir.clone(), source };
    fs::create_dir_all(dir).map_err(io("make the run's folder"))?;
    checkpoint::clear_stale(dir)?;
    let checkpoints = checkpoint::list(dir)?;
    if let (Some(last), false) = (checkpoints.last(), plan.checkpoint.resume) {
        return Err(Error::RunExists {
            dir: dir.clone(),
            checkpoints: checkpoints.len(),
            last_step: last.step,
        });
    }
    Ok(())
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

/// The weights of the run's data sources over its steps; those before a checkpoint are what it says they were.
///
/// # Errors
/// If the checkpoint's record of them cannot be read.
pub fn stages(plan: &Plan, checkpoint: Option<&Checkpoint>) -> Result<Vec<Stage>, Error> {
    let Some(checkpoint) = checkpoint else { return Ok(corpus::stages(plan, &[], 0)) };
    let saved = checkpoint.run_state();
    let recorded = corpus::stages_from_toml(&saved.data_stages).map_err(|message| {
        let checkpoint = checkpoint.folder().to_owned();
        Error::DamagedStages { checkpoint, message }
    })?;
    Ok(corpus::stages(plan, &recorded, saved.step))
}

/// Fills the state from a checkpoint, once it is known to belong to this plan and data; grown, where
/// it is the last of its stage. `stages` are the plans of all stages of the run.
///
/// # Errors
/// If the plan means another run, the data is other data, or the tensors do not fit.
pub fn resume(
    stages: &[Plan],
    data: &Data,
    (state, rules): (&mut RunState, &Rules),
    checkpoint: &Checkpoint,
) -> Result<(), Error> {
    let saved = checkpoint.run_state();
    let (of, after) = (stages[0].stage_of(saved.step), stages[0].stage_after(saved.step));
    let (before, plan) = (Plan::from_toml(&saved.plan_toml)?, &stages[of]);
    let changes = before.meaning_changes(plan, saved.step);
    if !changes.is_empty() {
        return Err(Error::PlanChanged { checkpoint: checkpoint.folder().to_owned(), changes });
    }
    if let Some(difference) = data.difference(&saved.data_fingerprint) {
        let Difference { path, expected, found } = difference;
        let checkpoint = checkpoint.folder().to_owned();
        return Err(Error::DataChanged { path, checkpoint, expected, found });
    }
    if of < after {
        let entered = &stages[0].growth[of..after];
        return start::enter_stages(entered, (state, rules), checkpoint, plan.seed);
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
    Ok(())
}
