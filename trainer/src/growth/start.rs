//! What a run starts from, and what it goes on with where a stage begins.

use std::path::Path;

use super::compose::{grow, problems};
use super::error::Error as GrowthError;
use super::filling::fill;
use super::parts::Parts;
use super::schemes::assign;
use super::stored::StoredModel;
use super::{Problem, states};
use crate::checkpoint::Checkpoint;
use crate::config::{GrowthPlan, GrowthStage, Plan, Tokenizer};
use crate::error::Error;
use crate::guard::History;
use crate::loaded::tokenizer_of;
use crate::model::compute::Compute;
use crate::rules::Rules;
use crate::starting;
use crate::state::RunState;

/// Fills a new run's state: with initial values, or with the model that the plan starts from,
/// grown if it says so. Tokens and FLOPs of a grown source are carried on, so that costs are those
/// of the whole way.
///
/// # Errors
/// If the model to start from cannot be read or does not fit: all reasons at once.
pub fn start(
    plan: &Plan,
    compute: &Compute,
    (state, rules): (&mut RunState, &Rules),
) -> Result<(), Error> {
    let (Some(from), Some(growth)) = (&plan.init.from, plan.init.growth) else {
        let units = state.units.iter_mut().map(|unit| &mut unit.spec);
        assign(plan.init.scheme, &plan.model, units);
        return starting::start(plan, compute, state);
    };
    if growth.learn_steps > 0 {
        return Err(GrowthError::LearnedApart.into());
    }
    let source = StoredModel::open(from)?;
    states::check(&source, rules, &growth)?;
    if let Some(checkpoint) = source.checkpoint() {
        let saved = checkpoint.run_state();
        (state.num_tokens, state.flops) = (saved.num_tokens, saved.total_flops);
    }
    let model = grown_source(Box::new(source), plan, (from, &growth))?;
    fill(state, rules, &*model);
    Ok(())
}

/// A source as the plan grows it, once its tokens are known to be the plan's.
///
/// # Errors
/// If they do not fit: all reasons at once.
pub fn grown_source<'a>(
    source: Box<StoredModel>,
    plan: &Plan,
    (name, growth): (&Path, &GrowthPlan),
) -> Result<Box<dyn Parts + 'a>, Error> {
    let source_name = name.display().to_string();
    if let Some(problem) = other_tokenizer(source.folder(), plan)? {
        let mut all = problems(source.config(), &plan.model, growth);
        all.push(problem);
        return Err(GrowthError::Refused { source_name, problems: all }.into());
    }
    Ok(grow(source, &plan.model, growth, (&source_name, plan.seed))?)
}

/// Fills the state from a checkpoint of the stages before `entered`, grown through them.
///
/// # Errors
/// If the checkpoint cannot be read or the optimizer's state not be taken over.
pub fn enter_stages(
    entered: &[GrowthStage],
    (state, rules): (&mut RunState, &Rules),
    checkpoint: &Checkpoint,
    seed: u64,
) -> Result<(), Error> {
    let source = StoredModel::open(checkpoint.folder())?;
    let saved = checkpoint.run_state();
    (state.step, state.num_tokens, state.flops) = (saved.step, saved.num_tokens, saved.total_flops);
    state.history = History::from_record(&saved.guard);
    let mut model: Box<dyn Parts> = Box::new(source);
    for stage in entered {
        let name = format!("the model of step {}", stage.at_step);
        model = grow(model, &stage.model, &stage.growth, (&name, seed))?;
    }
    fill(state, rules, &*model);
    Ok(())
}

/// Everything that stands against the stages of a plan, before its first step.
///
/// # Errors
/// [`GrowthError::Refused`] for the first stage that does not fit.
pub fn check_stages(plan: &Plan) -> Result<(), Error> {
    let mut before = &plan.model;
    for (index, stage) in plan.growth.iter().enumerate() {
        let problems = problems(before, &stage.model, &stage.growth);
        if !problems.is_empty() {
            let source_name = format!("growth[{index}]: the model before step {}", stage.at_step);
            return Err(GrowthError::Refused { source_name, problems }.into());
        }
        before = &stage.model;
    }
    Ok(())
}

/// Whether a model's folder tells of tokens that are not the plan's.
pub(super) fn other_tokenizer(folder: &Path, plan: &Plan) -> Result<Option<Problem>, Error> {
    let (Some(found), Some(target)) = (tokenizer_of(folder)?, &plan.data.tokenizer) else {
        return Ok(None);
    };
    let same = match (&found, target) {
        (Tokenizer::Bytes, Tokenizer::Bytes) => true,
        (Tokenizer::File(a), Tokenizer::File(b)) => same_content(a, b),
        _ => false,
    };
    let (target, found) = (String::from(target.clone()), String::from(found));
    Ok((!same).then_some(Problem::Tokenizer { target, found }))
}

/// Whether two tokenizers are the same file, or the same `tokenizer.json` in two folders. Forms
/// that cannot be compared count as the same: sizes of the vocabulary are checked elsewhere.
fn same_content(a: &Path, b: &Path) -> bool {
    let json = |path: &Path| {
        if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() }
    };
    match (std::fs::read(json(a)), std::fs::read(json(b))) {
        (Ok(a), Ok(b)) => a == b,
        _ => true,
    }
}
