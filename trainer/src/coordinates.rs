//! The coordinate check: how large activations are after some steps at several widths (Yang et al.
//! 2022, arXiv:2203.03466, appendix D.1). Under muP they are about the same at every width; under
//! the standard parametrization they grow with it.
//!
//! Every model trains on one batch of random tokens, the same at all widths, on one rank.

use grove_optim::clip_scale;
use grove_parallel::LocalCollective;
use rand_chacha::rand_core::RngCore;
use tch::{Kind, Tensor};

use crate::clock::Clock;
use crate::config::Plan;
use crate::error::Error;
use crate::gradients::Round;
use crate::growth::schemes::initialize;
use crate::model::block::Recompute;
use crate::model::compute::Compute;
use crate::model::head::HeadWeights;
use crate::model::init::generator;
use crate::model::views::Weights;
use crate::pass::{Layers, Tokens, Traffic, micro_step};
use crate::recipe::{allocate, placement, recipe};
use crate::sharding::Sharding;
use crate::state::{RunState, UnitState};
use crate::step::Recipe;
use crate::update::{Update, apply, squared_grad_norm};

/// Mean sizes of activations after some steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Coordinates {
    /// Steps done.
    pub step: u64,
    /// Mean loss of the batch in nats, before the next step.
    pub loss: f64,
    /// Mean absolute values of the residual stream after the embedding and after each block.
    pub stream: Vec<f64>,
    /// Mean absolute value of the logits.
    pub logits: f64,
    /// Mean absolute change of the logits since step 0.
    pub change: f64,
    /// Mean absolute change of the residual stream behind the last block since step 0.
    pub moved: f64,
}

/// Trains a plan's model for `steps` steps and measures it before each and after the last.
///
/// # Errors
/// If the plan's optimizer is refused or an update is.
pub fn coordinates(plan: &Plan, compute: Compute, steps: u64) -> Result<Vec<Coordinates>, Error> {
    let local = LocalCollective::new();
    let recipe = recipe(plan, compute, 1)?;
    let sharding = Sharding::new(placement(plan, &local), &local)?;
    let mut state = allocate(plan, &recipe, &sharding)?;
    initialize(plan, &recipe.compute, &mut state);
    let mut traffic = Traffic::new(sharding, &state.units, 0);
    let tokens = random_tokens(plan, &recipe.compute);
    let (mut found, mut first) = (Vec::new(), None);
    for step in 0..=steps {
        let (stream, now) = measure(recipe.layers(&state), &tokens);
        let loss = one_step(&recipe, &mut state, &tokens, &mut traffic)?;
        let [change, moved] = first.as_ref().map_or([0.0; 2], |first| now.changes(first));
        let logits = mean_size(&now.logits);
        found.push(Coordinates { step, loss, stream, logits, change, moved });
        first.get_or_insert(now);
    }
    Ok(found)
}

/// One batch of uniformly random tokens, keyed by the plan's seed.
fn random_tokens(plan: &Plan, compute: &Compute) -> Tokens {
    let (size, length) = (plan.batch.micro_batch_size, plan.batch.sequence_length);
    let vocab_size = plan.model.spec().vocab_size as u64;
    let mut rng = generator(plan.seed, "tokens of the coordinate check");
    let rows: Vec<u32> =
        (0..size * (length + 1)).map(|_| (rng.next_u64() % vocab_size) as u32).collect();
    Tokens::new(compute, &rows, size)
}

fn one_step(
    recipe: &Recipe,
    state: &mut RunState,
    tokens: &Tokens,
    traffic: &mut Traffic<'_>,
) -> Result<f64, Error> {
    let clock = &mut Clock::new();
    let loss = micro_step(recipe.layers(state), tokens, Round::only(), traffic, clock)?;
    traffic.sums.finish()?;
    let count = tokens.num_targets() as f64;
    let squared = squared_grad_norm(&recipe.compute, &state.units, &traffic.sharding, clock)?;
    let norm = squared.sqrt() / count;
    let clip = if recipe.clip_norm > 0.0 { clip_scale(norm, recipe.clip_norm) } else { 1.0 };
    let update = Update {
        count_offsets: &std::collections::BTreeMap::new(),
        rules: &recipe.rules,
        kernels: recipe.kernels(),
        groups: &recipe.groups,
        lr: recipe.schedule.lr(state.step),
        weight_decay: recipe.weight_decay.multiplier(state.step),
        grad_scale: clip / count,
        step: state.step + 1,
        averaging_weight: recipe.schedule.averaging_weight(state.step),
        seed: recipe.seed,
    };
    apply(&recipe.compute, &mut state.units, &update, traffic)?;
    state.step += 1;
    Ok(loss.double_value(&[]) / count)
}

/// What a model makes of the batch, in f32.
#[derive(Debug)]
struct Outcome {
    /// The residual stream behind the last block `[B * S, D]`.
    stream: Tensor,
    /// `[B * S, V]`.
    logits: Tensor,
}

impl Outcome {
    /// Mean absolute changes of logits and stream.
    fn changes(&self, since: &Self) -> [f64; 2] {
        [(&self.logits, &since.logits), (&self.stream, &since.stream)]
            .map(|(now, before)| mean_size(&(now - before)))
    }
}

/// Mean sizes of the residual stream, and what comes of it.
fn measure(layers: Layers<'_>, tokens: &Tokens) -> (Vec<f64>, Outcome) {
    let Layers { model, compute, units } = layers;
    let pass = model.pass(compute, tokens.shape(), None);
    let mut x = model.embed(compute, &whole(&units[0]), (&tokens.inputs, None));
    let mut stream = vec![mean_size(&x)];
    for unit in &units[1..units.len() - 1] {
        x = model.block.forward(&pass, &whole(unit), x, Recompute::Block).0;
        stream.push(mean_size(&x));
    }
    let head = HeadWeights {
        norm: whole(&units[units.len() - 1]),
        output: whole(&units[model.output_unit()]),
    };
    let logits = model.head.logits(compute, &head, &x).to_kind(Kind::Float);
    (stream, Outcome { stream: x.to_kind(Kind::Float), logits })
}

fn whole(unit: &UnitState) -> Weights<'_> {
    Weights { layout: &unit.layout, flat: &unit.working }
}

fn mean_size(values: &Tensor) -> f64 {
    values.abs().mean(Kind::Double).double_value(&[])
}
