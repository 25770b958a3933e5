//! Sophia's two estimates against the exact diagonals, which autograd gives one derivative at a
//! time on a small model in f64.

use std::collections::BTreeMap;

use grove::Clock;
use grove::curvature::{Curvature, Estimator, Held, Probe, Setting};
use grove::model::block::Recompute;
use grove::model::compute::Compute;
use grove::model::plain::{NamedWeights, PlainModel};
use grove::pass::{Tokens, Traffic};
use grove::rules::Rules;
use grove::sharding::{Placement, Sharding};
use grove_optim::{RuleConfig, SophiaConfig, StateKind};
use grove_parallel::LocalCollective;
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, Subject};

/// Estimates that a mean is over.
const DRAWS: u64 = 200;
/// The share of elements beyond 3 standard errors: 0.003 if their means were normal; means of
/// squares have a longer tail, as rare labels give most of theirs.
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
    let mut subject = Subject::with_rules(fixture, Kind::Double, Recompute::None, &rules);
    // Thousands of passes over tiny tensors: handing them to threads would take most of the time.
    tch::set_num_threads(1);
    subject.compute = Compute::new(Device::Cpu, Kind::Double, 1);
    (subject, rules)
}

/// What many estimates of one parameter's diagonal add up to.
struct Estimates {
    /// By element.
    mean: Tensor,
    /// Squared standard errors of the means.
    variance: Tensor,
    /// The trace of each estimate.
    traces: Vec<f64>,
}

/// The estimates of many steps, by parameter.
fn estimates(fixture: &Fixture, estimator: Estimator) -> BTreeMap<String, Estimates> {
    let (mut subject, rules) = subject(fixture);
    let curvature = Curvature { every: 1, estimator, seed: 7 };
    let mut sums: BTreeMap<String, Estimates> = BTreeMap::new();
    for step in 0..DRAWS {
        for (name, value) in one_estimate(&mut subject, (&curvature, &rules), fixture, step) {
            let zero = || value.zeros_like();
            let sums = sums.entry(name).or_insert_with(|| Estimates {
                mean: zero(),
                variance: zero(),
                traces: Vec::new(),
            });
            sums.mean += &value;
            sums.variance += value.square();
            sums.traces.push(value.sum(Kind::Double).double_value(&[]));
        }
    }
    let n = DRAWS as f64;
    for sums in sums.values_mut() {
        sums.mean /= n;
        sums.variance = (&sums.variance / n - sums.mean.square()) / (n - 1.0);
    }
    sums
}

/// The diagonal of one step's estimate, by parameter.
fn one_estimate(
    subject: &mut Subject,
    (curvature, rules): (&Curvature, &Rules),
    fixture: &Fixture,
    step: u64,
) -> BTreeMap<String, Tensor> {
    let held: Vec<Held> = rows(fixture).iter().enumerate().map(hold(subject)).collect();
    let setting = Setting { model: &subject.model, compute: &subject.compute, rules, step };
    let units = &mut subject.state.units;
    let local = LocalCollective::new();
    let sharding = Sharding::new(Placement::alone(), &local).expect("one rank");
    let mut traffic = Traffic::new(sharding, units, 0);
    let outcome = curvature.estimate(setting, units, &held, &mut traffic, &mut Clock::new());
    outcome.expect("one rank");
    diagonals(subject)
}

/// How many standard errors the mean of some numbers is from what it should be.
fn deviation(values: &[f64], expected: f64) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean - expected) / (variance / n).sqrt()
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

/// Expects few elements beyond 3 standard errors.
#[track_caller]
fn check_elements(label: &str, deviations: &[f64]) {
    let outliers = deviations.iter().filter(|value| value.abs() > 3.0).count();
    let share = outliers as f64 / deviations.len() as f64;
    eprintln!("{label}: {outliers} of {} elements beyond 3 standard errors", deviations.len());
    assert!(share < OUTLIERS, "{label}: {share} beyond 3 standard errors");
}

#[test]
fn gauss_newton_bartlett_is_unbiased() {
    for label in ["llama_mqa_untied", "gpt2_tied"] {
        let fixture = Fixture::load(label);
        tch::set_num_threads(1);
        let exact = exact_gauss_newton(&fixture);
        let (mut all, mut traces) = (Vec::new(), vec![0.0; DRAWS as usize]);
        let mut exact_trace = 0.0;
        let estimator = Estimator::GaussNewtonBartlett { clip_norm: 0.0 };
        for (name, found) in estimates(&fixture, estimator) {
            let deviations = (&found.mean - &exact[&name]) / found.variance.sqrt();
            let deviations: Vec<f64> = Vec::try_from(deviations).expect("f64");
            all.extend(deviations.into_iter().filter(|value| value.is_finite()));
            traces.iter_mut().zip(&found.traces).for_each(|(sum, trace)| *sum += trace);
            exact_trace += exact[&name].sum(Kind::Double).double_value(&[]);
        }
        check_elements(label, &all);
        let beyond = deviation(&traces, exact_trace);
        eprintln!("{label}: the trace is {beyond:.2} standard errors from {exact_trace}");
        assert!(beyond.abs() < 3.0, "{label}: the trace is {beyond} standard errors off");
    }
}

#[test]
fn hutchinson_is_unbiased() {
    for (label, probe) in [("llama_mqa_untied", Probe::Rademacher), ("gpt2_tied", Probe::Gaussian)]
    {
        let fixture = Fixture::load(label);
        tch::set_num_threads(1);
        let exact = exact_hessian(&fixture, 12);
        let model = Box::new(PlainModel::new(&fixture.config));
        let mut all = Vec::new();
        for (name, found) in estimates(&fixture, Estimator::Hutchinson { probe, model }) {
            for &(index, value) in &exact[&name] {
                let error = found.mean.double_value(&[index]) - value;
                let deviation = error / found.variance.double_value(&[index]).sqrt();
                all.extend(deviation.is_finite().then_some(deviation));
            }
        }
        check_elements(label, &all);
        // Of 1 for an unbiased estimate; a wrong factor of 2 shows as more than 2.
        let mean_square = all.iter().map(|value| value * value).sum::<f64>() / all.len() as f64;
        eprintln!("{label}: mean square {mean_square:.2}");
        assert!(mean_square < 1.5, "{label}: mean squared deviation {mean_square}");
    }
}

#[test]
fn the_sampled_gradient_can_be_clipped() {
    let fixture = Fixture::load("llama_mqa_untied");
    let trace = |clip_norm: f64| {
        let (mut subject, rules) = subject(&fixture);
        let estimator = Estimator::GaussNewtonBartlett { clip_norm };
        let curvature = Curvature { every: 1, estimator, seed: 7 };
        let found = one_estimate(&mut subject, (&curvature, &rules), &fixture, 0);
        found.values().map(|value| value.sum(Kind::Double).double_value(&[])).sum::<f64>()
    };
    // The trace is the number of tokens times the squared norm of the mean gradient.
    let norm = (trace(0.0) / 8.0).sqrt();
    let clipped = trace(norm / 2.0);
    assert!((clipped / trace(0.0) - 0.25).abs() < 1e-4, "{clipped}");
}
