//! A step that went wrong, once more: its batch through the model, looking at every tensor on the
//! way, to find the first that is not finite.

use std::path::{Path, PathBuf};

use grove_parallel::Collective;

use crate::blackbox::{BlackBox, ParamNorms, Size, norms};
use crate::checkpoint::{self, Checkpoint};
use crate::clock::Clock;
use crate::config::{Plan, Policy};
use crate::corpus::Data;
use crate::error::Error;
use crate::folder::keep_past;
use crate::gradients::Round;
use crate::growth::inherit::teach;
use crate::growth::start::start;
use crate::guard::Exclusions;
use crate::model::block::Recompute;
use crate::model::compute::Compute;
use crate::model::views::Weights;
use crate::pass::{Layers, Tokens, Traffic, loss_sum, micro_step};
use crate::recipe::{allocate, recipe};
use crate::saving::{self, Optimizer};
use crate::sharding::{Placement, Sharding};
use crate::signals::StopRequest;
use crate::state::RunState;
use crate::step::{Recipe, train_step};
use crate::step_numbers::{SaveCounts, Word};

/// Which weights a step is done again with.
#[derive(Clone, Debug, Default)]
pub struct From {
    /// A checkpoint; the newest before the step by default, and where there is none the initial
    /// weights.
    pub checkpoint: Option<PathBuf>,
    /// Whether to train from there up to the step, which gives the very weights it had.
    pub advance: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Steps done by the weights that were used.
    pub weights_step: u64,
    /// Mean loss of the batch.
    pub loss: f64,
    /// L2 norm of the mean gradient.
    pub grad_norm: f64,
    /// By their number in the step.
    pub micro_batches: Vec<MicroReplay>,
    /// Of the whole batch's gradient, in the order of the model.
    pub parameters: Vec<ParamNorms>,
    /// In words: micro-batch, direction and tensor.
    pub first_not_finite: Option<String>,
}

/// One micro-batch of a replay.
#[derive(Clone, Debug, PartialEq)]
pub struct MicroReplay {
    /// Summed loss.
    pub loss_sum: f64,
    /// What each unit but the head passes on, by name, in order.
    pub outputs: Vec<(String, Size)>,
}

/// Does the step of a black box again, on one rank, without an update.
///
/// # Errors
/// If the black box or the checkpoint is not whole, or the weights cannot be brought to the step.
pub fn replay(
    folder: &Path,
    from: &From,
    compute: Compute,
    alone: &dyn Collective,
) -> Result<Replay, Error> {
    let black_box = BlackBox::open(folder)?;
    let plan = &black_box.plan;
    let mut recipe = recipe(plan, compute, 1)?;
    let sharding = Sharding::new(Placement::alone(), alone)?;
    let mut state = allocate(plan, &recipe, &sharding)?;
    let before = black_box.report.step - 1;
    let checkpoint = nearest(folder, from, before)?;
    match &checkpoint {
        Some(checkpoint) => {
            saving::load(&mut state, (&recipe.rules, Optimizer::Resumed), checkpoint)?;
        }
        None => start(plan, &recipe.compute, (&mut state, &recipe.rules))?,
    }
    let mut traffic = Traffic::new(sharding, &state.units, 0);
    if from.advance {
        let excluded = Exclusions::new(black_box.report.excluded_data_steps.iter().copied());
        state.history.excluded = excluded;
        let mut data = Data::open(plan)?;
        if let Some(checkpoint) = &checkpoint {
            keep_past(plan, &mut data, checkpoint, &state.history.excluded)?;
        }
        advance((plan, &mut recipe, &data), &mut state, &mut traffic, (alone, before))?;
    }
    teach(plan, alone, &mut recipe, state.step)?;
    recipe.model.mask_at(&recipe.compute, state.step);
    look(&black_box, &recipe, &state, &mut traffic)
}

/// The checkpoint to begin with: the one asked for, else the newest of the run before the step.
fn nearest(folder: &Path, from: &From, before: u64) -> Result<Option<Checkpoint>, Error> {
    if let Some(wanted) = &from.checkpoint {
        return Ok(Some(Checkpoint::open(wanted)?));
    }
    // <run>/blackbox/step-N
    let folder = folder.canonicalize().map_err(|source| Error::Io {
        action: "find",
        path: folder.to_owned(),
        source,
    })?;
    let Some(run_folder) = folder.parent().and_then(Path::parent) else { return Ok(None) };
    let whole = checkpoint::list(run_folder)?;
    let newest = whole.iter().rfind(|whole| whole.step <= before);
    Ok(newest.map(|whole| Checkpoint::open(&whole.folder)).transpose()?)
}

/// Trains up to step `before`, as the run did.
fn advance(
    (plan, recipe, data): (&Plan, &mut Recipe, &Data),
    state: &mut RunState,
    traffic: &mut Traffic<'_>,
    (alone, before): (&dyn Collective, u64),
) -> Result<(), Error> {
    let mut batches = data.batches(plan, alone, (state.step, &state.history.excluded))?;
    let (stop, mut clock) = (StopRequest::never(), Clock::new());
    let word = Word { stop: &stop, saves: SaveCounts::default(), leaves_step: false };
    while state.step < before {
        teach(plan, alone, recipe, state.step)?;
        recipe.model.mask_at(&recipe.compute, state.step);
        let outcome = train_step(recipe, state, &mut batches, traffic, word, &mut clock)?;
        let outcome = outcome.expect("it is never asked to stop");
        let Some(tripped) = outcome.tripped else { continue };
        if tripped.policy != Policy::Skip {
            let data_step = state.history.excluded.data_step(state.step);
            return Err(Error::Tripped {
                step: state.step + 1,
                trip: tripped.trip,
                loss: outcome.loss,
                grad_norm: outcome.grad_norm,
                trips: 1,
                excluded_step: data_step + 1,
                black_box: None,
            });
        }
        state.skip(outcome.num_tokens);
    }
    Ok(traffic.residents.settle()?)
}

/// Forward and backward of every micro-batch.
fn look(
    black_box: &BlackBox,
    recipe: &Recipe,
    state: &RunState,
    traffic: &mut Traffic<'_>,
) -> Result<Replay, Error> {
    let layers = recipe.layers(state);
    let count = black_box.num_micro_batches();
    let (mut micro_batches, mut parameters) = (Vec::new(), Vec::new());
    let (mut first, mut num_tokens) = (None, 0);
    for index in 0..count {
        let batch = black_box.micro_batch(index)?;
        num_tokens += batch.num_targets();
        let mut tokens = Tokens::of_batch(layers.compute, &batch, recipe.documents);
        tokens.lesson = recipe.lesson(&tokens, state.step)?;
        let outputs = unit_outputs(layers, &tokens);
        let loss = loss_sum(layers, &tokens, traffic)?.double_value(&[]);
        let round = Round { first: index == 0, last: index + 1 == count, contributes: true };
        drop(micro_step(layers, &tokens, round, traffic, &mut Clock::new())?);
        traffic.sums.finish()?;
        parameters = norms(layers.units, &traffic.sharding)?;
        let micro = MicroReplay { loss_sum: loss, outputs };
        if first.is_none() {
            first = bad_tensor(&micro, &parameters)
                .map(|tensor| format!("micro-batch {index}, {tensor}"));
        }
        micro_batches.push(micro);
    }
    let num_tokens = num_tokens as f64;
    let squares = parameters.iter().map(|param| param.gradient);
    let grad_norm = match squares.clone().any(|size| size.not_finite > 0) {
        true => f64::NAN,
        false => squares.map(|size| size.norm * size.norm).sum::<f64>().sqrt() / num_tokens,
    };
    let loss = micro_batches.iter().map(|micro| micro.loss_sum).sum::<f64>() / num_tokens;
    let (weights_step, first_not_finite) = (state.step, first);
    Ok(Replay { weights_step, loss, grad_norm, micro_batches, parameters, first_not_finite })
}

/// The sizes of what embedding and blocks pass on.
fn unit_outputs(layers: Layers<'_>, tokens: &Tokens) -> Vec<(String, Size)> {
    let Layers { model, compute, units } = layers;
    let pass = model.pass(compute, tokens.shape(), tokens.segments.as_deref());
    let weights = |index: usize| {
        let unit = &units[index];
        Weights { layout: &unit.layout, flat: &unit.working }
    };
    let inputs = (&tokens.inputs, tokens.segments.as_deref());
    let mut x = model.embed(compute, &weights(0), inputs);
    let mut outputs = vec![(units[0].spec.name.clone(), Size::of(&x))];
    for (index, unit) in units.iter().enumerate().take(units.len() - 1).skip(1) {
        let pass = model.through(&pass, index - 1);
        x = model.block.forward(&pass, &weights(index), x, Recompute::Block).0;
        outputs.push((unit.spec.name.clone(), Size::of(&x)));
    }
    outputs
}

/// The first tensor that is not finite in the order in which they are computed.
fn bad_tensor(micro: &MicroReplay, parameters: &[ParamNorms]) -> Option<String> {
    if let Some(weight) = parameters.iter().find(|param| param.weight.not_finite > 0) {
        let Size { not_finite, .. } = weight.weight;
        return Some(format!("before it: {not_finite} weights of {}", weight.name));
    }
    if let Some((unit, size)) = micro.outputs.iter().find(|(_, size)| size.not_finite > 0) {
        return Some(format!("forward: {} outputs of {unit}", size.not_finite));
    }
    if !micro.loss_sum.is_finite() {
        return Some("forward: the loss".to_owned());
    }
    let gradient = parameters.iter().rev().find(|param| param.gradient.not_finite > 0)?;
    let Size { not_finite, .. } = gradient.gradient;
    Some(format!("backward: {not_finite} gradients of {}", gradient.name))
}
