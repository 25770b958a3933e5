//! One optimizer step: batches in, parameters updated, numbers out.

mod found;

use std::time::Duration;

use found::{Found, Passed};
use grove_data::Prefetcher;
use grove_optim::{BatchRamp, Groups, Kernels, Schedule, clip_scale};
use grove_parallel::{Assignment, ExactSum};

use crate::clock::Clock;
use crate::curvature::{Before, Curvature, Held, Setting};
use crate::error::Error;
use crate::gradients::Round;
use crate::guard::{self, Tripped};
use crate::metrics::Phase;
use crate::model::compute::Compute;
use crate::model::decoder::Decoder;
use crate::model::lesson::Lesson;
use crate::pass::{Documents, Layers, Tokens, Traffic, micro_step};
use crate::rules::Rules;
use crate::state::RunState;
use crate::step_numbers::{SaveCounts, StepNumbers, Word, agree_to_stop};
use crate::teacher::Distillation;
use crate::update::{Update, apply};

/// How long a rank that waits for data goes without a look for a request to stop.
const STOP_POLL: Duration = Duration::from_millis(20);

/// What stays the same from step to step.
#[derive(Debug)]
pub struct Recipe {
    /// The layers.
    pub model: Decoder,
    /// Device, dtypes and threads.
    pub compute: Compute,
    /// The update rules by role.
    pub rules: Rules,
    /// Their kernels where masters live on a GPU; an error where they cannot be had, and libtorch's
    /// operations do the same.
    pub kernels: Option<Result<Kernels, grove_optim::Error>>,
    /// Multipliers by role.
    pub groups: Groups,
    /// The learning rate of every step.
    pub schedule: Schedule,
    /// The factor on weight decay of every step.
    pub weight_decay: Schedule,
    /// Estimates of the curvature, for rules that want them.
    pub curvature: Option<Curvature>,
    /// The largest global gradient norm; 0 for no clipping.
    pub clip_norm: f64,
    /// The run's seed.
    pub seed: u64,
    /// What counts as a step that goes wrong.
    pub guard: guard::Rules,
    /// Micro-batches of every step.
    pub ramp: BatchRamp,
    /// Ranks that share them.
    pub degree: usize,
    /// Whether documents in one row see each other.
    pub documents: Documents,
    /// A teacher to learn from.
    pub distillation: Option<Distillation>,
}

impl Recipe {
    /// The kernels of the rules, where there are any.
    pub fn kernels(&self) -> Option<&Kernels> {
        self.kernels.as_ref()?.as_ref().ok()
    }

    /// Which rank computes which micro-batches of the step after `step` steps.
    ///
    /// # Errors
    /// If there are more ranks than micro-batches.
    pub fn assignment(&self, step: u64) -> Result<Assignment, grove_parallel::Error> {
        Assignment::new(self.ramp.count(step) as usize, self.degree)
    }

    /// What a teacher says of a micro-batch of the step after `step` steps, where one counts.
    ///
    /// # Errors
    /// Never: nothing is exchanged.
    pub fn lesson(
        &self,
        tokens: &Tokens,
        step: u64,
    ) -> Result<Option<Lesson>, grove_parallel::Error> {
        let Some(distillation) = &self.distillation else { return Ok(None) };
        distillation.lesson(&self.compute, tokens, step)
    }

    fn distilled(
        &self,
        step: u64,
        divergence: Option<ExactSum>,
        num_tokens: f64,
    ) -> Option<Distilled> {
        let distillation = self.distillation.as_ref()?;
        let (weight, loss) = (distillation.mixture(step)?.weight, divergence?.value() / num_tokens);
        let flops_per_token = distillation.teacher.as_ref()?.flops_per_token;
        Some(Distilled { loss, weight, flops_per_token })
    }

    /// The model with a state's parameters.
    pub fn layers<'a>(&'a self, state: &'a RunState) -> Layers<'a> {
        Layers { model: &self.model, compute: &self.compute, units: &state.units }
    }
}

/// A teacher's part in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distilled {
    /// Mean divergence from its predictions over the step's tokens, all ranks, in nats: `T^2 KL`.
    pub loss: f64,
    /// Its weight.
    pub weight: f64,
    /// FLOPs of its forward, a token.
    pub flops_per_token: u64,
}

/// What a step found.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// Mean loss over the step's tokens, all ranks, in nats.
    pub loss: f64,
    /// L2 norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// The schedule's learning rate.
    pub lr: f64,
    /// Tokens of the step, all ranks.
    pub num_tokens: u64,
    /// Passes forward and backward that the step's operations come to: one, and those of an
    /// estimate of the curvature.
    pub num_passes: u64,
    /// Whether any rank was asked to stop.
    pub stop: bool,
    /// How far all ranks are with saving.
    pub saves: SaveCounts,
    /// The summed loss of each of this rank's micro-batches, in order.
    pub micro_losses: Vec<f64>,
    /// The teacher's part, where one counted.
    pub distilled: Option<Distilled>,
    /// How the step went wrong, if it did: the same on every rank. Nothing was updated then, and
    /// the sums of gradients are still there.
    pub tripped: Option<Tripped>,
}

/// Does step `state.step`: gradients over this rank's micro-batches, their sum over ranks, one
/// update, unless the loss or the gradient went wrong. No target at all is an error on every rank.
/// Returns nothing where a stop was asked for and the step was left for it ([`Word::leaves_step`]):
/// parameters, optimizer state and counters are then as they were.
///
/// # Errors
/// If data cannot be read, no target counts, or a collective fails.
///
/// # Collectives
/// Those of [`micro_step`] in each round, with an all-reduce before it under [`Word::leaves_step`], an
/// all-reduce of the step's numbers, one of the squared norm, and those of [`apply`].
///
/// # Waiting for a GPU
/// Once, where the losses and the norm are fetched ([`crate::readback`]), after every pass of the
/// step was queued and before its update is. Once more where an estimate of the curvature is due;
/// besides where tensors travel through the host: masters in host memory, collectives over MPI.
pub fn train_step(
    recipe: &Recipe,
    state: &mut RunState,
    batches: &mut Prefetcher,
    traffic: &mut Traffic<'_>,
    word: Word<'_>,
    clock: &mut Clock,
) -> Result<Option<StepOutcome>, Error> {
    clock.begin_step(state.step + 1);
    let curvature = recipe.curvature.as_ref().filter(|curvature| curvature.is_due(state.step));
    let num_passes = 1 + curvature.map_or(0, Curvature::passes);
    let before = curvature.filter(|_| recipe.guard.may_skip()).map(|_| Before::keep(&state.units));
    let held = estimate_curvature(recipe, state, batches, traffic, clock)?;
    // An estimate has changed the state, which must not be saved without its step.
    let word = Word { leaves_step: word.leaves_step && held.is_none(), ..word };
    let passed = gradients(recipe, state, (batches, held), word, traffic, clock)?;
    let Some(passed) = passed else {
        traffic.sums.finish()?;
        return Ok(None);
    };
    clock.enter(Phase::Reduce);
    traffic.sums.finish()?;
    let Found { numbers, micro_losses, squared_norm } =
        passed.found(recipe, state, word, traffic, clock)?;
    let StepNumbers { loss, divergence, num_tokens, stops, saves } = numbers;
    let num_tokens_f64 = num_tokens as f64;
    let loss = loss.value() / num_tokens_f64;
    let grad_norm = squared_norm.sqrt() / num_tokens_f64;
    let lr = recipe.schedule.lr(state.step);
    let tripped = recipe.guard.judge(&state.history, loss, grad_norm);
    let stop = stops > 0;
    let distilled = recipe.distilled(state.step, divergence, num_tokens_f64);
    let outcome = StepOutcome {
        loss,
        grad_norm,
        lr,
        num_tokens,
        num_passes,
        stop,
        saves,
        micro_losses,
        distilled,
        tripped,
    };
    if tripped.is_some() {
        if let Some(before) = before {
            before.restore(&state.units);
        }
        return Ok(Some(outcome));
    }
    update(recipe, state, &outcome, traffic, clock)?;
    Ok(Some(outcome))
}

/// The update of a good step, which then counts.
fn update(
    recipe: &Recipe,
    state: &mut RunState,
    &StepOutcome { loss, grad_norm, lr, num_tokens, .. }: &StepOutcome,
    traffic: &mut Traffic<'_>,
    clock: &mut Clock,
) -> Result<(), Error> {
    let clip = if recipe.clip_norm > 0.0 { clip_scale(grad_norm, recipe.clip_norm) } else { 1.0 };
    clock.enter(Phase::Optim);
    let count_offsets = state.count_offsets.clone();
    let update = Update {
        rules: &recipe.rules,
        kernels: recipe.kernels(),
        groups: &recipe.groups,
        lr,
        weight_decay: recipe.weight_decay.multiplier(state.step),
        grad_scale: clip / num_tokens as f64,
        step: state.num_updates() + 1,
        count_offsets: &count_offsets,
        averaging_weight: recipe.schedule.averaging_weight(state.step),
        seed: recipe.seed,
    };
    apply(&recipe.compute, &mut state.units, &update, traffic)?;
    state.step += 1;
    state.num_tokens += num_tokens;
    state.history.note_update((state.step, recipe.guard.window()), loss, grad_norm);
    Ok(())
}

/// Estimates the curvature if it is due, and returns the step's micro-batches, which were read for
/// it.
fn estimate_curvature(
    recipe: &Recipe,
    state: &mut RunState,
    batches: &mut Prefetcher,
    traffic: &mut Traffic<'_>,
    clock: &mut Clock,
) -> Result<Option<Vec<Held>>, Error> {
    let Recipe { model, compute, rules, curvature, .. } = recipe;
    let Some(curvature) = curvature.as_ref().filter(|it| it.is_due(state.step)) else {
        return Ok(None);
    };
    let (assignment, rank) = (recipe.assignment(state.step)?, traffic.sharding.placement.rank);
    let mut rounds: Vec<Held> = Vec::with_capacity(assignment.num_rounds());
    for index in 0..assignment.num_rounds() {
        let number = assignment.micro_batch(index, rank);
        let tokens = match (number, rounds.last()) {
            (None, Some(last)) => last.tokens.shallow_clone(),
            _ => next_tokens(recipe, batches, clock)?,
        };
        rounds.push(Held { tokens, number });
    }
    let setting = Setting { model, compute, rules, step: state.step };
    curvature.estimate(setting, &mut state.units, &rounds, traffic, clock)?;
    Ok(Some(rounds))
}

fn next_tokens(
    recipe: &Recipe,
    batches: &mut Prefetcher,
    clock: &mut Clock,
) -> Result<Tokens, Error> {
    clock.enter(Phase::Data);
    let batch = batches.next()?;
    Ok(Tokens::of_batch(&recipe.compute, &batch, recipe.documents))
}

/// The same, but nothing if a stop is asked for before they come and the step may be left.
fn next_tokens_or_stop(
    recipe: &Recipe,
    batches: &mut Prefetcher,
    word: Word<'_>,
    clock: &mut Clock,
) -> Result<Option<Tokens>, Error> {
    if !word.leaves_step {
        return next_tokens(recipe, batches, clock).map(Some);
    }
    clock.enter(Phase::Data);
    while !word.stop.is_asked() {
        if let Some(batch) = batches.next_within(STOP_POLL)? {
            return Ok(Some(Tokens::of_batch(&recipe.compute, &batch, recipe.documents)));
        }
    }
    Ok(None)
}

/// Forward and backward of this rank's micro-batches. Nothing if the step was left for a stop, which
/// all ranks do before the same round.
///
/// In a last round with fewer micro-batches than ranks, a rank without one computes its last one
/// again and contributes nothing: so all ranks take part in the same collectives.
fn gradients(
    recipe: &Recipe,
    state: &RunState,
    (batches, held): (&mut Prefetcher, Option<Vec<Held>>),
    word: Word<'_>,
    traffic: &mut Traffic<'_>,
    clock: &mut Clock,
) -> Result<Option<Passed>, Error> {
    let (layers, assignment) = (recipe.layers(state), recipe.assignment(state.step)?);
    let (num_rounds, rank) = (assignment.num_rounds(), traffic.sharding.placement.rank);
    let (mut losses, mut num_tokens, mut tokens) = (Vec::new(), 0, None::<Tokens>);
    let mut divergences = Vec::new();
    for index in 0..num_rounds {
        clock.begin_round(index as u64);
        let contributes = assignment.micro_batch(index, rank).is_some();
        if let Some(held) = &held {
            tokens = Some(held[index].tokens.shallow_clone());
        } else if contributes {
            tokens = next_tokens_or_stop(recipe, batches, word, clock)?;
        }
        if word.leaves_step {
            clock.enter(Phase::Reduce);
            if agree_to_stop(traffic.sharding.world(), word.stop)? {
                return Ok(None);
            }
        }
        let tokens = tokens.as_mut().expect("every rank has a micro-batch in the first round");
        clock.enter(Phase::Forward);
        tokens.lesson = recipe.lesson(tokens, state.step)?;
        let round = Round { first: index == 0, last: index + 1 == num_rounds, contributes };
        let loss = micro_step(layers, tokens, round, traffic, clock)?;
        if contributes {
            losses.push(loss);
            divergences.extend(tokens.lesson.as_ref().map(|it| it.divergence.shallow_clone()));
            num_tokens += tokens.num_targets();
        }
    }
    let divergence = recipe.distillation.as_ref().and_then(|it| it.mixture(state.step));
    let divergences = divergence.map(|_| divergences);
    Ok(Some(Passed { losses, divergences, num_tokens }))
}
