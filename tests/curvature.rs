//! Sophia's two estimates against the exact diagonals, which autograd gives one derivative at a
//! time on a small model in f64.

use std::collections::BTreeMap;

use grove::Clock;
use grove::curvature::{Curvature, Estimator, Held, Probe, Setting};
use grove::model::block::Recompute;
use grove::model::plain::{NamedWeights, PlainModel};
use grove::pass::Tokens;
use grove_optim::{RuleConfig, Rules, SophiaConfig, StateKind};
use tch::{Kind, Tensor};

use crate::fixture::{Fixture, Subject};

/// Estimates that a mean is over.
const DRAWS: u64 = 300;
/// The mean of squared deviations in standard errors is 1 for an unbiased estimate; over the
/// elements of a model, which are correlated, it strays by some tenths.
const UNBIASED: f64 = 1.6;
/// The share of elements beyond 3 standard errors: 0.003 if their means were normal; means of
/// squares have a longer tail.
const OUTLIERS: f64 = 0.03;

/// Two micro-batches of one sequence of four tokens each.
fn rows(fixture: &Fixture) -> Vec<Tensor> {
    let tokens = fixture.get("tokens");
    (0..2).map(|row| tokens.narrow(0, row, 1).narrow(1, 0, 5).contiguous()).collect()
}

/// A subject whose state is the last estimate itself.
fn subject(fixture: &Fixture) -> (Subject, Rules) {
    let config = SophiaConfig { beta2: 0.0, ..SophiaConfig::default() };
    let rules = Rules::all(RuleConfig::Sophia(config).build().expect("in range"));
    (Subject::with_rules(fixture, Kind::Double, Recompute::None, &rules), rules)
}

/// Mean and squared standard error of the estimates of many steps, by parameter.
fn estimates(fixture: &Fixture, estimator: Estimator) -> BTreeMap<String, (Tensor, Tensor)> {
    let (mut subject, rules) = subject(fixture);
    let curvature = Curvature { every: 1, estimator, seed: 7 };
    let mut sums: BTreeMap<String, (Tensor, Tensor)> = BTreeMap::new();
    for step in 0..DRAWS {
        let held: Vec<Held> = rows(fixture).iter().enumerate().map(hold(&subject)).collect();
        let setting =
            Setting { model: &subject.model, compute: &subject.compute, rules: &rules, step };
        let units = &mut subject.state.units;
        let local = grove_parallel::LocalCollective::new();
        let place = grove::sharding::Placement::alone();
        let sharding = grove::sharding::Sharding::new(place, &local).expect("one rank");
        let mut traffic = grove::pass::Traffic::new(sharding, units, 0);
        let outcome = curvature.estimate(setting, units, &held, &mut traffic, &mut Clock::new());
        outcome.expect("one rank");
        for (name, value) in diagonals(&subject) {
            let zero = || value.zeros_like();
            let (sum, squares) = sums.entry(name).or_insert_with(|| (zero(), zero()));
            *sum += &value;
            *squares += value.square();
        }
    }
    let n = DRAWS as f64;
    let finish = |(sum, squares): (Tensor, Tensor)| {
        let mean = sum / n;
        let variance = (squares / n - mean.square()) / (n - 1.0);
        (mean, variance)
    };
    sums.into_iter().map(|(name, sums)| (name, finish(sums))).collect()
}

fn hold(subject: &Subject) -> impl Fn((usize, &Tensor)) -> Held + '_ {
    |(number, row)| {
        let ids: Vec<i64> = Vec::try_from(row.reshape([-1])).expect("ids");
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        Held { tokens: Tokens::new(&subject.compute, &ids, 1), number: Some(number) }
    }
}

/// The states that hold the diagonal, by parameter.
fn diagonals(subject: &Subject) -> BTreeMap<String, Tensor> {
    let mut found = BTreeMap::new();
    for unit in &subject.state.units {
        for segment in &unit.segments {
            for &(buffer, first) in &segment.places {
                let state = &unit.states[buffer];
                if state.spec.kind == StateKind::Hessian {
                    let part = state.flat.narrow(0, first as i64, segment.range.len() as i64);
                    found.insert(unit.spec.params[segment.param].name.clone(), part.copy());
                }
            }
        }
    }
    found
}

fn leaves(fixture: &Fixture) -> NamedWeights {
    let leaf = |tensor: Tensor| tensor.detach().set_requires_grad(true);
    fixture.params().into_iter().map(|(name, tensor)| (name, leaf(tensor))).collect()
}

/// `mean over tokens of sum_k p_k (d log p_k)^2`: the diagonal of the Gauss-Newton matrix of the
/// mean loss.
fn exact_gauss_newton(fixture: &Fixture) -> BTreeMap<String, Tensor> {
    let (model, weights) = (PlainModel::new(&fixture.config), leaves(fixture));
    let parameters: Vec<&Tensor> = weights.values().collect();
    let mut sums: Vec<Tensor> = parameters.iter().map(|leaf| leaf.zeros_like().detach()).collect();
    let mut count = 0.0;
    for row in rows(fixture) {
        let inputs = row.narrow(1, 0, row.size()[1] - 1);
        let log = tch::with_grad(|| model.logits(&weights, &inputs).log_softmax(-1, Kind::Double));
        let log = tch::with_grad(|| log.view([-1, log.size()[2]]));
        for token in 0..log.size()[0] {
            count += 1.0;
            for class in 0..log.size()[1] {
                let term = tch::with_grad(|| log.get(token).get(class));
                let probability = term.double_value(&[]).exp();
                let grads = Tensor::run_backward(&[term], &parameters, true, false);
                for (sum, grad) in sums.iter_mut().zip(grads) {
                    *sum += grad.square() * probability;
                }
            }
        }
    }
    weights.keys().cloned().zip(sums.into_iter().map(|sum| (sum / count).view(-1))).collect()
}

/// Some elements of the Hessian's diagonal of the mean loss, by parameter: index and value.
fn exact_hessian(fixture: &Fixture, each: i64) -> BTreeMap<String, Vec<(i64, f64)>> {
    let (model, weights) = (PlainModel::new(&fixture.config), leaves(fixture));
    let parameters: Vec<&Tensor> = weights.values().collect();
    let grads = tch::with_grad(|| {
        let losses =
            rows(fixture).iter().map(|row| model.loss_sum(&weights, row)).collect::<Vec<_>>();
        let num_tokens = rows(fixture).iter().map(|row| row.size()[1] - 1).sum::<i64>() as f64;
        let loss = Tensor::stack(&losses, 0).sum(Kind::Double) / num_tokens;
        Tensor::run_backward(&[loss], &parameters, true, true)
    });
    let mut found = BTreeMap::new();
    for ((name, leaf), grad) in weights.iter().zip(&grads) {
        let flat = tch::with_grad(|| grad.reshape([-1]));
        let step = (flat.numel() as i64 / each).max(1);
        let of = |index: i64| {
            let element = tch::with_grad(|| flat.get(index));
            let row = Tensor::run_backward(&[element], &[leaf], true, false);
            (index, row[0].reshape([-1]).double_value(&[index]))
        };
        let indices = (0..each).map(|k| k * step + k % step).filter(|i| *i < flat.numel() as i64);
        found.insert(name.clone(), indices.map(of).collect());
    }
    found
}

/// Squared deviations in standard errors, where the estimate varies at all.
fn squared_deviations(mean: &Tensor, variance: &Tensor, exact: &Tensor) -> Vec<f64> {
    let deviations = (mean - exact.view(-1)).square() / variance;
    let deviations: Vec<f64> = Vec::try_from(deviations).expect("f64");
    deviations.into_iter().filter(|value| value.is_finite()).collect()
}

#[track_caller]
fn check(label: &str, deviations: &[f64]) {
    let count = deviations.len() as f64;
    let mean = deviations.iter().sum::<f64>() / count;
    let outliers = deviations.iter().filter(|&&value| value > 9.0).count() as f64 / count;
    eprintln!("{label}: {count} elements, mean square {mean:.2}, {outliers:.4} beyond 3");
    assert!(mean < UNBIASED, "{label}: mean squared deviation {mean}");
    assert!(outliers < OUTLIERS, "{label}: {outliers} beyond 3 standard errors");
}

#[test]
fn gauss_newton_bartlett_is_unbiased() {
    for name in ["llama_gqa_tied", "llama_mqa_untied", "gpt2_tied"] {
        let fixture = Fixture::load(name);
        let exact = exact_gauss_newton(&fixture);
        let estimator = Estimator::GaussNewtonBartlett { clip_norm: 0.0 };
        let (mut all, mut trace) = (Vec::new(), [0.0; 2]);
        for (name, (mean, variance)) in estimates(&fixture, estimator) {
            let exact = &exact[&name];
            all.extend(squared_deviations(&mean, &variance, exact));
            trace[0] += mean.sum(Kind::Double).double_value(&[]);
            trace[1] += exact.sum(Kind::Double).double_value(&[]);
        }
        check(name, &all);
        // The trace over all draws has a standard error of some percent.
        let error = (trace[0] - trace[1]).abs() / trace[1];
        assert!(error < 0.1, "{name}: trace {}, exactly {}", trace[0], trace[1]);
    }
}

#[test]
fn hutchinson_is_unbiased() {
    for (name, probe) in [("llama_mqa_untied", Probe::Rademacher), ("gpt2_tied", Probe::Gaussian)] {
        let fixture = Fixture::load(name);
        let exact = exact_hessian(&fixture, 24);
        let model = PlainModel::new(&fixture.config);
        let mut all = Vec::new();
        for (name, (mean, variance)) in estimates(&fixture, Estimator::Hutchinson { probe, model })
        {
            for &(index, value) in &exact[&name] {
                let (mean, variance) =
                    (mean.double_value(&[index]), variance.double_value(&[index]));
                let deviation = (mean - value).powi(2) / variance;
                all.extend(deviation.is_finite().then_some(deviation));
            }
        }
        check(name, &all);
    }
}

#[test]
fn the_sampled_gradient_can_be_clipped() {
    let fixture = Fixture::load("llama_mqa_untied");
    let trace = |clip_norm: f64| {
        let (mut subject, rules) = subject(&fixture);
        let estimator = Estimator::GaussNewtonBartlett { clip_norm };
        let curvature = Curvature { every: 1, estimator, seed: 7 };
        let held: Vec<Held> = rows(&fixture).iter().enumerate().map(hold(&subject)).collect();
        let setting =
            Setting { model: &subject.model, compute: &subject.compute, rules: &rules, step: 0 };
        let mut units = std::mem::take(&mut subject.state.units);
        let local = grove_parallel::LocalCollective::new();
        let place = grove::sharding::Placement::alone();
        let sharding = grove::sharding::Sharding::new(place, &local).expect("one rank");
        let mut traffic = grove::pass::Traffic::new(sharding, &units, 0);
        let clock = &mut Clock::new();
        curvature.estimate(setting, &mut units, &held, &mut traffic, clock).expect("one rank");
        subject.state.units = units;
        let sum = |value: &Tensor| value.sum(Kind::Double).double_value(&[]);
        diagonals(&subject).values().map(sum).sum::<f64>()
    };
    // The trace is the number of tokens times the squared norm of the mean gradient.
    let norm = (trace(0.0) / 8.0).sqrt();
    let clipped = trace(norm / 2.0);
    assert!((clipped / trace(0.0) - 0.25).abs() < 1e-4, "{clipped}");
}
