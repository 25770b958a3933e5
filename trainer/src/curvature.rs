//! Estimates of the diagonal of the curvature, for Sophia (Liu et al. 2023, arXiv:2305.14342): every
//! so many steps one more pass over the step's micro-batches, before its gradients.
//!
//! Both estimates join the same sums over micro-batches and ranks as gradients do, so they are as
//! exact at any number of ranks and any stage.

use std::collections::BTreeMap;

use grove_optim::{HessianEstimate, Rule, StateKind};
use tch::{Device, Kind, Tensor};

use crate::clock::Clock;
use crate::error::Error;
use crate::gradients::Round;
use crate::kernel::view;
use crate::metrics::Phase;
use crate::model::compute::{Compute, on_device};
use crate::model::decoder::Decoder;
use crate::model::init::{fill, generator, open_uniform};
use crate::model::plain::{NamedWeights, PlainModel};
use crate::model::units::{Init, ParamSpec};
use crate::pass::{Layers, Tokens, Traffic, micro_step};
use crate::rules::Rules;
use crate::state::UnitState;
use crate::step_numbers::sum_integers;
use crate::update::squared_grad_norm;

/// When and how the curvature is estimated.
#[derive(Debug)]
pub struct Curvature {
    /// Steps between two estimates; the first step has one.
    pub every: u64,
    /// How.
    pub estimator: Estimator,
    /// The run's seed.
    pub seed: u64,
}

/// How the diagonal is estimated.
#[derive(Debug)]
pub enum Estimator {
    /// Gauss-Newton-Bartlett (algorithm 2): with labels drawn from the model's own predictions, the
    /// square of the mean gradient over all tokens of the step, times their number.
    GaussNewtonBartlett {
        /// The largest norm of that gradient before it is squared; 0 for no clipping.
        clip_norm: f64,
    },
    /// Hutchinson (algorithm 1): `u (H u)` for a random direction `u`, by two derivatives of
    /// the plain model in the accumulation dtype. Each rank holds all weights meanwhile.
    Hutchinson {
        /// The distribution of the direction.
        probe: Probe,
        /// The model as one function of its weights.
        model: Box<PlainModel>,
    },
}

/// The distribution of Hutchinson's direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// 1 or -1.
    Rademacher,
    /// Normal.
    Gaussian,
}

/// What a rank computes in one round of a step.
#[derive(Debug)]
pub struct Held {
    /// The tokens; those of an earlier round where the rank has no micro-batch in this one. Draws
    /// that they bring decide the labels of an estimate; without, they are drawn by key.
    pub tokens: Tokens,
    /// The micro-batch's global number in the step; none where the rank has none.
    pub number: Option<usize>,
}

/// What an estimate is made of, beside the parameters.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The layers.
    pub model: &'a Decoder,
    /// Device, dtypes and threads.
    pub compute: &'a Compute,
    /// Which parameters keep an estimate: those of Sophia.
    pub rules: &'a Rules,
    /// Steps done before this one.
    pub step: u64,
}

impl Curvature {
    /// Passes forward and backward that the operations of an estimate come to.
    pub fn passes(&self) -> u64 {
        match self.estimator {
            Estimator::GaussNewtonBartlett { .. } => 1,
            // Three products of matrices for each weight, and then the derivatives by both factors
            // of each of them.
            Estimator::Hutchinson { .. } => 3,
        }
    }

    /// Whether the step after `step` steps begins with an estimate.
    pub fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.every)
    }

    /// Estimates the diagonal over the micro-batches of a step and folds it into Sophia's states.
    /// An estimate that is not finite is left out on every rank: the step's own gradient will tell.
    ///
    /// # Errors
    /// If a collective fails.
    ///
    /// # Collectives
    /// Those of a step's gradients (Hutchinson: gathers of all units instead of each in its turn),
    /// an all-reduce of the token count, and one of the squared norm.
    pub fn estimate(
        &self,
        setting: Setting<'_>,
        units: &mut [UnitState],
        rounds: &[Held],
        traffic: &mut Traffic<'_>,
        clock: &mut Clock,
    ) -> Result<(), Error> {
        let layers = Layers { model: setting.model, compute: setting.compute, units };
        let tokens = match &self.estimator {
            Estimator::GaussNewtonBartlett { .. } => {
                self.sampled_gradients(layers, setting.step, rounds, traffic, clock)?
            }
            Estimator::Hutchinson { probe, model } => {
                let probes = probes(&setting, units, self.seed, *probe);
                hutchinson(&setting, units, (model, &probes), rounds, traffic)?
            }
        };
        clock.enter(Phase::Reduce);
        let num_tokens = sum_integers(traffic.sharding.world(), &[tokens], "tokens")?[0] as f64;
        traffic.sums.finish()?;
        clock.enter(Phase::Clip);
        let norm = squared_grad_norm(setting.compute, units, &traffic.sharding, clock)?.sqrt();
        if !norm.is_finite() {
            return Ok(());
        }
        let estimate = match self.estimator {
            Estimator::GaussNewtonBartlett { clip_norm } => {
                let clip = match clip_norm > 0.0 {
                    true => grove_optim::clip_scale(norm / num_tokens, clip_norm),
                    false => 1.0,
                };
                let grad_scale = clip / num_tokens;
                HessianEstimate::GaussNewtonBartlett { grad_scale, num_tokens }
            }
            Estimator::Hutchinson { .. } => HessianEstimate::Hutchinson { scale: 1.0 / num_tokens },
        };
        clock.enter(Phase::Optim);
        units.iter_mut().try_for_each(|unit| fold(setting.rules, unit, estimate))
    }

    /// The gradients of the loss against drawn labels, on their way into the units' accumulators;
    /// returns this rank's tokens.
    fn sampled_gradients(
        &self,
        layers: Layers<'_>,
        step: u64,
        rounds: &[Held],
        traffic: &mut Traffic<'_>,
        clock: &mut Clock,
    ) -> Result<i64, Error> {
        let mut num_tokens = 0;
        for (index, held) in rounds.iter().enumerate() {
            let numel = held.tokens.targets.numel();
            // Without a micro-batch the labels do not matter.
            let number = held.number.unwrap_or(0);
            let mut tokens = held.tokens.shallow_clone();
            let draws = match &held.tokens.draws {
                Some(draws) => draws.shallow_clone(),
                None => uniforms(self.seed, (step, number), numel),
            };
            tokens.draws = Some(on_device(draws, layers.compute.device));
            let _loss = micro_step(layers, &tokens, round(index, rounds), traffic, clock)?;
            if held.number.is_some() {
                num_tokens += held.tokens.num_targets() as i64;
            }
        }
        Ok(num_tokens)
    }
}

fn round(index: usize, rounds: &[Held]) -> Round {
    let contributes = rounds[index].number.is_some();
    Round { first: index == 0, last: index + 1 == rounds.len(), contributes }
}

/// Uniform numbers in `[0, 1)` for the tokens of a micro-batch: keyed by seed, step and the
/// micro-batch's global number, one after the other for its tokens.
fn uniforms(seed: u64, (step, number): (u64, usize), numel: usize) -> Tensor {
    let mut rng = generator(seed, &format!("labels of step {step}, micro-batch {number}"));
    let values: Vec<f64> = (0..numel).map(|_| 1.0 - open_uniform(&mut rng)).collect();
    Tensor::from_slice(&values)
}

/// The random direction of a step, by parameter, in the accumulation dtype.
fn probes(
    setting: &Setting<'_>,
    units: &[UnitState],
    seed: u64,
    probe: Probe,
) -> BTreeMap<String, Tensor> {
    let mut probes = BTreeMap::new();
    for param in units.iter().flat_map(|unit| &unit.spec.params) {
        let mut values = vec![0.0; param.shape.iter().product::<i64>() as usize];
        let name = format!("direction of step {} for {}", setting.step, param.name);
        let drawn = ParamSpec { name, init: Init::Normal(1.0), ..param.clone() };
        fill(seed, &drawn, &mut values);
        if probe == Probe::Rademacher {
            values.iter_mut().for_each(|value| *value = 1f64.copysign(*value));
        }
        let values = Tensor::from_slice(&values).to_kind(setting.compute.accumulation());
        let values = values.to_device(setting.compute.device).view(param.shape.as_slice());
        probes.insert(param.name.clone(), values);
    }
    probes
}

/// `u (H u)` of the summed loss of each round, on its way into the units' accumulators; returns
/// this rank's tokens.
fn hutchinson(
    setting: &Setting<'_>,
    units: &[UnitState],
    (model, probes): (&PlainModel, &BTreeMap<String, Tensor>),
    rounds: &[Held],
    traffic: &mut Traffic<'_>,
) -> Result<i64, Error> {
    let Setting { compute, .. } = *setting;
    let mut num_tokens = 0;
    for (index, held) in rounds.iter().enumerate() {
        let weights = whole_weights(compute, units, traffic)?;
        let products = products(model, &weights, probes, &held.tokens);
        for (index, _) in units.iter().enumerate() {
            traffic.residents.release(index);
        }
        for unit in units.iter().rev() {
            let gradient = traffic.sums.apart(compute, unit)?;
            for (place, param) in unit.layout.params().iter().zip(&unit.spec.params) {
                let part = gradient.flat.narrow(0, place.offset as i64, place.numel as i64);
                part.view(param.shape.as_slice()).copy_(&products[&param.name]);
            }
            let Traffic { sharding, sums, .. } = &mut *traffic;
            sums.add(compute, sharding, unit, gradient, round(index, rounds))?;
        }
        if held.number.is_some() {
            num_tokens += held.tokens.num_targets() as i64;
        }
    }
    Ok(num_tokens)
}

/// Leaves with the whole working copies of all parameters, in the accumulation dtype.
fn whole_weights(
    compute: &Compute,
    units: &[UnitState],
    traffic: &mut Traffic<'_>,
) -> Result<NamedWeights, Error> {
    let mut weights = NamedWeights::new();
    for (index, unit) in units.iter().enumerate() {
        let Traffic { sharding, residents, .. } = &mut *traffic;
        residents.prefetch(units, sharding, index)?;
        let whole = residents.whole(units, index)?.to_kind(compute.accumulation());
        for place in unit.layout.params() {
            let part = whole.narrow(0, place.offset as i64, place.numel as i64);
            let leaf = part.view(place.shape.as_slice()).detach().set_requires_grad(true);
            weights.insert(place.name.clone(), leaf);
        }
    }
    Ok(weights)
}

/// `u (H u)` of the summed loss of a micro-batch, by parameter, with `u` the `probes`: the derivative
/// of `g u` with `g` the gradient (Pearlmutter 1994, "Fast exact multiplication by the Hessian",
/// section 4). Weights are leaves that require gradients; a product has its parameter's shape.
pub fn products(
    model: &PlainModel,
    weights: &NamedWeights,
    probes: &BTreeMap<String, Tensor>,
    tokens: &Tokens,
) -> BTreeMap<String, Tensor> {
    let leaves: Vec<&Tensor> = weights.values().collect();
    let along = tch::with_grad(|| {
        let rows = (&tokens.inputs, &tokens.targets);
        let loss = model.loss_sum_in_segments(weights, rows, tokens.segments.as_deref());
        let grads = Tensor::run_backward(&[loss], &leaves, true, true);
        let terms = grads.iter().zip(weights.keys());
        let terms: Vec<Tensor> =
            terms.map(|(grad, name)| (grad * &probes[name]).sum(grad.kind())).collect();
        Tensor::run_backward(
            &[Tensor::stack(&terms, 0).sum(terms[0].kind())],
            &leaves,
            false,
            false,
        )
    });
    let named = weights.keys().zip(along);
    named.map(|(name, product)| (name.clone(), product * &probes[name])).collect()
}

/// The diagonals as they were before an estimate: 4 bytes for each of Sophia's parameters that this
/// rank owns, until the step is known to be good.
#[derive(Debug)]
pub struct Before(Vec<Tensor>);

impl Before {
    /// Copies of the diagonals.
    pub fn keep(units: &[UnitState]) -> Self {
        Self(diagonals(units).map(Tensor::copy).collect())
    }

    /// Puts them back: the step's batch leaves no trace in them.
    pub fn restore(self, units: &[UnitState]) {
        for (diagonal, kept) in diagonals(units).zip(self.0) {
            diagonal.shallow_clone().copy_(&kept);
        }
    }
}

fn diagonals(units: &[UnitState]) -> impl Iterator<Item = &Tensor> {
    let states = units.iter().flat_map(|unit| &unit.states);
    states.filter(|state| state.spec.kind == StateKind::Hessian).map(|state| &state.flat)
}

/// Folds the sums of a unit into the states of its parameters that keep an estimate.
fn fold(rules: &Rules, unit: &mut UnitState, estimate: HessianEstimate) -> Result<(), Error> {
    let home = unit.masters.device();
    let grads = unit.owned_grads().to_device(home);
    for segment in &unit.segments {
        let Rule::Sophia(rule) = rules.of(unit.spec.params[segment.param].role) else { continue };
        let states = &mut unit.states;
        let kept = |&&(buffer, _): &&(usize, usize)| states[buffer].spec.kind == StateKind::Hessian;
        let place = segment.places.iter().find(kept);
        let &(buffer, first) = place.expect("sophia keeps the diagonal");
        let len = segment.range.len();
        let estimated = grads.narrow(0, segment.range.start as i64, len as i64);
        let mut kept = states[buffer].flat.narrow(0, first as i64, len as i64);
        match (home, kept.kind()) {
            (Device::Cpu, Kind::Double) => rule.fold_estimate::<f64>(
                view::slice_mut(&mut kept),
                view::slice(&estimated),
                estimate,
            )?,
            (Device::Cpu, _) => rule.fold_estimate::<f32>(
                view::slice_mut(&mut kept),
                view::slice(&estimated),
                estimate,
            )?,
            _ => rule.fold_estimate_tensor(&mut kept, &estimated, estimate)?,
        }
    }
    Ok(())
}
