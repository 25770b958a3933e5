//! One optimizer step: batches in, parameters updated, numbers out.

use grove_data::Prefetcher;
use grove_optim::{Groups, Rule, Schedule, clip_scale};
use grove_parallel::{Assignment, ExactSum};
use tch::{Kind, Tensor};

use crate::clock::Clock;
use crate::error::Error;
use crate::gradients::Round;
use crate::metrics::Phase;
use crate::model::compute::Compute;
use crate::model::decoder::Decoder;
use crate::pass::{Layers, Tokens, Traffic, micro_step};
use crate::signals::StopRequest;
use crate::state::RunState;
use crate::step_numbers::StepNumbers;
use crate::update::{Update, apply, squared_grad_norm};

/// What stays the same from step to step.
#[derive(Debug)]
pub struct Recipe {
    /// The layers.
    pub model: Decoder,
    /// Device, dtypes and threads.
    pub compute: Compute,
    /// The update rule.
    pub rule: Rule,
    /// Multipliers by role.
    pub groups: Groups,
    /// The learning rate of every step.
    pub schedule: Schedule,
    /// What is added to a step for its place in the schedule; not 0 once a run has grown.
    pub schedule_shift: i64,
    /// The largest global gradient norm; 0 for no clipping.
    pub clip_norm: f64,
    /// The run's seed.
    pub seed: u64,
    /// Which rank computes which micro-batches of a step.
    pub assignment: Assignment,
}

impl Recipe {
    /// The model with a state's parameters.
    pub fn layers<'a>(&'a self, state: &'a RunState) -> Layers<'a> {
        Layers { model: &self.model, compute: &self.compute, units: &state.units }
    }
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// Mean loss over the step's tokens, all ranks, in nats.
    pub loss: f64,
    /// L2 norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// The schedule's learning rate.
    pub lr: f64,
    /// Tokens of the step, all ranks.
    pub num_tokens: u64,
    /// Whether any rank was asked to stop.
    pub stop: bool,
}

/// Does step `state.step`: gradients over this rank's micro-batches, their sum over ranks, one
/// update. A loss or gradient that is not finite is an error on every rank, before any update.
///
/// # Errors
/// If data cannot be read, a collective fails, or the loss or gradient is not finite.
///
/// # Collectives
/// Those of [`micro_step`] in each round, an all-reduce of the step's numbers, one of the squared
/// norm, and those of [`apply`].
pub fn train_step(
    recipe: &Recipe,
    state: &mut RunState,
    batches: &mut Prefetcher,
    traffic: &mut Traffic<'_>,
    stop: &StopRequest,
    clock: &mut Clock,
) -> Result<StepOutcome, Error> {
    clock.begin_step(state.step + 1);
    let mine = gradients(recipe, state, batches, traffic, clock)?;

    clock.enter(Phase::Reduce);
    let StepNumbers { loss, num_tokens, stops } =
        mine.asked_to_stop(stop).over_ranks(traffic.sharding.world())?;
    traffic.sums.finish()?;

    clock.enter(Phase::Clip);
    let num_tokens_f64 = num_tokens as f64;
    let loss = loss.value() / num_tokens_f64;
    let squared_norm = squared_grad_norm(&recipe.compute, &state.units, &traffic.sharding)?;
    let grad_norm = squared_norm.sqrt() / num_tokens_f64;
    if !(loss.is_finite() && grad_norm.is_finite()) {
        return Err(Error::NotFinite { step: state.step + 1, loss, grad_norm });
    }
    let clip = if recipe.clip_norm > 0.0 { clip_scale(grad_norm, recipe.clip_norm) } else { 1.0 };

    clock.enter(Phase::Optim);
    let place = state.step.saturating_add_signed(recipe.schedule_shift);
    let lr = recipe.schedule.lr(place);
    let count_offsets = state.count_offsets.clone();
    let update = Update {
        rule: &recipe.rule,
        groups: &recipe.groups,
        lr,
        grad_scale: clip / num_tokens_f64,
        step: state.step + 1,
        count_offsets: &count_offsets,
        averaging_weight: recipe.schedule.averaging_weight(place),
        seed: recipe.seed,
    };
    apply(&recipe.compute, &mut state.units, &update, traffic)?;
    state.step += 1;
    state.num_tokens += num_tokens;
    Ok(StepOutcome { loss, grad_norm, lr, num_tokens, stop: stops > 0 })
}

/// Forward and backward of this rank's micro-batches: the summed loss and the tokens.
///
/// In a last round with fewer micro-batches than ranks, a rank without one computes its last one
/// again and contributes nothing: so all ranks take part in the same collectives.
fn gradients(
    recipe: &Recipe,
    state: &RunState,
    batches: &mut Prefetcher,
    traffic: &mut Traffic<'_>,
    clock: &mut Clock,
) -> Result<StepNumbers, Error> {
    let Recipe { compute, assignment, .. } = recipe;
    let layers = recipe.layers(state);
    let (num_rounds, rank) = (assignment.num_rounds(), traffic.sharding.placement.rank);
    let (mut losses, mut num_tokens, mut tokens) = (Vec::new(), 0, None);
    for index in 0..num_rounds {
        let contributes = assignment.micro_batch(index, rank).is_some();
        if contributes {
            clock.enter(Phase::Data);
            let batch = batches.next()?;
            tokens = Some(Tokens::new(compute, &batch.tokens, batch.batch_size));
        }
        let tokens = tokens.as_ref().expect("every rank has a micro-batch in the first round");
        let round = Round { first: index == 0, last: index + 1 == num_rounds, contributes };
        let loss = micro_step(layers, tokens, round, traffic, clock)?;
        if contributes {
            losses.push(loss);
            num_tokens += tokens.targets.numel() as u64;
        }
    }
    let mut loss = ExactSum::new();
    let losses: Vec<f64> =
        Vec::try_from(Tensor::stack(&losses, 0).to_kind(Kind::Double)).expect("a vector of f64");
    losses.into_iter().for_each(|value| loss.add(value));
    Ok(StepNumbers { loss, num_tokens, stops: 0 })
}
