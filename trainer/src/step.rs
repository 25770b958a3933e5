//! One optimizer step: batches in, parameters updated, numbers out.

use grove_data::Prefetcher;
use grove_optim::{Groups, Rule, Schedule, clip_scale};
use grove_parallel::{Collective, Handle, Reduction};
use tch::{Kind, Tensor};

use crate::clock::Clock;
use crate::error::Error;
use crate::metrics::Phase;
use crate::model::compute::Compute;
use crate::model::decoder::Decoder;
use crate::model::views::Accumulate;
use crate::pass::{Reduce, Tokens, micro_step};
use crate::signals::StopRequest;
use crate::state::RunState;
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
    /// The largest global gradient norm; 0 for no clipping.
    pub clip_norm: f64,
    /// Micro-batches that this rank computes in each step.
    pub micro_batches: usize,
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
/// One all-reduce for each unit, and one of three numbers.
pub fn train_step(
    recipe: &Recipe,
    state: &mut RunState,
    batches: &mut Prefetcher,
    (collective, stop): (&dyn Collective, &StopRequest),
    clock: &mut Clock,
) -> Result<StepOutcome, Error> {
    let (loss_sum, num_tokens, reductions) = gradients(recipe, state, batches, collective, clock)?;

    clock.enter(Phase::Reduce);
    let sums = sum_over_ranks(collective, [loss_sum, num_tokens as f64, flag(stop)])?;
    reductions.into_iter().try_for_each(Handle::wait)?;
    let [loss_sum, num_tokens, stop] = sums;

    clock.enter(Phase::Clip);
    let loss = loss_sum / num_tokens;
    let grad_norm = squared_grad_norm(&recipe.compute, &state.units)?.sqrt() / num_tokens;
    if !(loss.is_finite() && grad_norm.is_finite()) {
        return Err(Error::NotFinite { step: state.step + 1, loss, grad_norm });
    }
    let clip = if recipe.clip_norm > 0.0 { clip_scale(grad_norm, recipe.clip_norm) } else { 1.0 };

    clock.enter(Phase::Optim);
    let lr = recipe.schedule.lr(state.step);
    let update = Update {
        rule: &recipe.rule,
        groups: &recipe.groups,
        lr,
        grad_scale: clip / num_tokens,
        step: state.step + 1,
    };
    apply(&recipe.compute, &mut state.units, &update)?;
    state.step += 1;
    state.num_tokens += num_tokens as u64;
    Ok(StepOutcome { loss, grad_norm, lr, num_tokens: num_tokens as u64, stop: stop > 0.0 })
}

/// Forward and backward of this rank's micro-batches: the summed loss, the tokens, and the
/// reductions of gradients that run meanwhile.
fn gradients(
    recipe: &Recipe,
    state: &RunState,
    batches: &mut Prefetcher,
    collective: &dyn Collective,
    clock: &mut Clock,
) -> Result<(f64, u64, Vec<Handle>), Error> {
    let (model, compute) = (&recipe.model, &recipe.compute);
    let mut loss_sum = Tensor::zeros([], (Kind::Double, compute.device));
    let (mut num_tokens, mut reductions) = (0, Vec::new());
    for index in 0..recipe.micro_batches {
        clock.enter(Phase::Data);
        let batch = batches.next()?;
        let tokens = Tokens::new(compute, &batch.tokens, batch.batch_size);
        let accumulate = if index == 0 { Accumulate::Overwrite } else { Accumulate::Add };
        let last = index + 1 == recipe.micro_batches;
        let reduce = if last { Reduce::Now(collective) } else { Reduce::Later };
        let order = (accumulate, reduce);
        let result = micro_step(model, compute, &state.units, &tokens, order, clock)?;
        loss_sum += result.loss_sum;
        num_tokens += tokens.targets.numel() as u64;
        reductions.extend(result.reductions);
    }
    Ok((loss_sum.double_value(&[]), num_tokens, reductions))
}

/// Sums a few numbers over ranks.
///
/// # Errors
/// If the collective fails.
///
/// # Collectives
/// One all-reduce.
pub fn sum_over_ranks<const N: usize>(
    collective: &dyn Collective,
    values: [f64; N],
) -> Result<[f64; N], grove_parallel::Error> {
    let tensor = Tensor::from_slice(&values);
    collective.all_reduce(&tensor, Reduction::Sum, "step numbers")?.wait()?;
    let mut sums = values;
    tensor.copy_data(&mut sums, N);
    Ok(sums)
}

/// Whether any rank was asked to stop: the same answer on all.
///
/// # Errors
/// If the collective fails.
///
/// # Collectives
/// One all-reduce.
pub fn agree_to_stop(
    collective: &dyn Collective,
    stop: &StopRequest,
) -> Result<bool, grove_parallel::Error> {
    Ok(sum_over_ranks(collective, [flag(stop)])?[0] > 0.0)
}

/// Refuses to go on unless every rank brings the same numbers.
///
/// # Errors
/// [`Error::RanksDiffer`] with the name of the first number that differs; or a failed collective.
///
/// # Collectives
/// One all-reduce.
pub fn agree_on<const N: usize>(
    collective: &dyn Collective,
    numbers: [(&'static str, i64); N],
) -> Result<(), Error> {
    let both = numbers.iter().flat_map(|(_, number)| [*number, -number]).collect::<Vec<_>>();
    let tensor = Tensor::from_slice(&both);
    collective.all_reduce(&tensor, Reduction::Max, "what the ranks start from")?.wait()?;
    for (index, (what, _)) in numbers.into_iter().enumerate() {
        let index = 2 * index as i64;
        let (most, least) = (tensor.int64_value(&[index]), -tensor.int64_value(&[index + 1]));
        if most != least {
            return Err(Error::RanksDiffer { what });
        }
    }
    Ok(())
}

fn flag(stop: &StopRequest) -> f64 {
    f64::from(u8::from(stop.is_asked()))
}
