//! Sophia's two estimates against the exact diagonals, which autograd gives one derivative at a
//! time on tiny models in f64: expectations by enumeration, without sampling, and what is drawn
//! against means and variances that are known exactly.

mod gauss_newton;
mod hutchinson;

use std::collections::BTreeMap;

use grove::Clock;
use grove::curvature::{Curvature, Estimator, Held, Setting};
use grove::model::block::Recompute;
use grove::model::compute::Compute;
use grove::model::plain::NamedWeights;
use grove::pass::{Documents, Tokens, Traffic};
use grove::rules::Rules;
use grove::sharding::{Placement, Sharding};
use grove_data::Batch;
use grove_optim::{RuleConfig, SophiaConfig, StateKind};
use grove_parallel::LocalCollective;
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, Subject};

/// Of the largest element: sums of some thousand f64 products on either side.
const EXACT: f64 = 1e-10;
/// Estimates that a mean is over.
const DRAWS: usize = 400;
/// How many standard deviations a statistic may be from what theory expects of it.
const DEVIATIONS: f64 = 3.0;
/// Below this, relative to the largest, an element's variance is zero but for rounding.
const NO_VARIANCE: f64 = 1e-20;

const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 4, "hidden_size": 8,
    "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 4, "rms_norm_eps": 0.01,
    "rope_theta": 100.0, "tie_word_embeddings": false, "initializer_range": 0.02}"#;
const GPT2: &str = r#"{"model_type": "gpt2", "vocab_size": 4, "n_embd": 6, "n_layer": 1, "n_head": 2,
    "n_inner": 10, "n_positions": 4, "layer_norm_epsilon": 0.01, "initializer_range": 0.02}"#;

/// A family each: rotary and learned positions, an own head and a tied one.
fn tiny_models() -> [(&'static str, Fixture); 2] {
    [("llama", LLAMA), ("gpt2", GPT2)].map(|(name, config)| (name, Fixture::made(config)))
}

/// Two micro-batches of one sequence each, of two and of three tokens, of which one does not count:
/// so the mean is over four tokens.
fn micro_batches(compute: &Compute) -> Vec<Tokens> {
    let batch = |tokens: &[u32], mask: Option<Vec<bool>>| {
        let (sequence_length, segment_starts) = (tokens.len() - 1, vec![0]);
        let tokens = tokens.to_vec();
        let batch =
            Batch { tokens, batch_size: 1, sequence_length, segment_starts, loss_mask: mask };
        Tokens::of_batch(compute, &batch, Documents::Together)
    };
    vec![batch(&[1, 3, 0], None), batch(&[2, 2, 0, 1], Some(vec![true, false, true]))]
}

/// Tokens that the mean loss is over.
const NUM_TOKENS: f64 = 4.0;

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

/// What one step's estimate is made of: its number and, if labels are chosen, their draws by
/// micro-batch.
struct Step<'a> {
    number: u64,
    draws: Option<&'a [Tensor]>,
}

/// One step's estimate of the diagonal, of all parameters in the order of their names.
fn estimate(
    subject: &mut Subject,
    (curvature, rules): (&Curvature, &Rules),
    step: Step<'_>,
) -> Tensor {
    let mut held = Vec::new();
    for (number, mut tokens) in micro_batches(&subject.compute).into_iter().enumerate() {
        tokens.draws = step.draws.map(|draws| draws[number].shallow_clone());
        held.push(Held { tokens, number: Some(number) });
    }
    let Subject { model, compute, state } = &mut *subject;
    let setting = Setting { model, compute, rules, step: step.number };
    let local = LocalCollective::new();
    let sharding = Sharding::new(Placement::alone(), &local).expect("one rank");
    let mut traffic = Traffic::new(sharding, &state.units, 0);
    let outcome =
        curvature.estimate(setting, &mut state.units, &held, &mut traffic, &mut Clock::new());
    outcome.expect("one rank");
    in_order(diagonals(subject))
}

/// The estimates of many steps with labels or directions of their own, `[DRAWS, P]`.
fn sampled(fixture: &Fixture, estimator: Estimator) -> Tensor {
    let (mut subject, rules) = subject(fixture);
    let curvature = Curvature { every: 1, estimator, seed: 7 };
    let step = |number| Step { number, draws: None };
    let rows: Vec<Tensor> = (0..DRAWS as u64)
        .map(|number| estimate(&mut subject, (&curvature, &rules), step(number)))
        .collect();
    Tensor::stack(&rows, 0)
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

/// One vector of all parameters.
fn in_order(by_name: BTreeMap<String, Tensor>) -> Tensor {
    let parts: Vec<Tensor> = by_name.into_values().map(|part| part.reshape([-1])).collect();
    Tensor::cat(&parts, 0)
}

fn leaves(fixture: &Fixture) -> NamedWeights {
    let leaf = |tensor: Tensor| tensor.detach().set_requires_grad(true);
    fixture.params().into_iter().map(|(name, tensor)| (name, leaf(tensor))).collect()
}

fn largest(values: &Tensor) -> f64 {
    values.abs().max().double_value(&[])
}

/// What is known of an estimate's distribution, by element and over all of them.
struct Law {
    /// `[P]`.
    mean: Tensor,
    /// `[P]`.
    variance: Tensor,
    /// `[P, P]`, a row and column each for elements of some variance.
    correlation: Tensor,
}

/// Holds estimates `[n, P]` against their law. `z` is an element's distance of the mean from what it
/// should be, in standard errors **of the law**, not of the sample: where rare draws give most of a
/// mean, samples without them have a small variance too, and their `z` is large.
///
/// The mean square of `z` over the elements is 1 in expectation. With `s` the standardized estimate
/// of one draw and `C` its correlation matrix, its variance is
/// `(Var |s|^2 / n + 2 (1 - 1 / n) tr C^2) / P^2`, however elements depend on each other.
#[track_caller]
fn check_law(label: &str, estimates: &Tensor, law: &Law) {
    let (n, _) = estimates.size2().expect("[n, P]");
    let errors = estimates.mean_dim([0i64].as_slice(), false, Kind::Double) - &law.mean;
    let varies = law.variance.gt(largest(&law.variance) * NO_VARIANCE);
    let fixed = errors.masked_fill(&varies, 0.0);
    assert!(largest(&fixed) < EXACT * largest(&law.mean), "{label}: elements without variance");

    let kept = varies.nonzero().view(-1);
    let (mean, deviation) =
        (law.mean.index_select(0, &kept), law.variance.index_select(0, &kept).sqrt());
    let standardized = (estimates.index_select(1, &kept) - mean) / deviation;
    let z =
        standardized.sum_dim_intlist([0i64].as_slice(), false, Kind::Double) / (n as f64).sqrt();
    let p = z.numel() as f64;
    let mean_square = z.square().sum(Kind::Double).double_value(&[]) / p;
    let norms = standardized.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let of_norms = norms.var(true).double_value(&[]) / n as f64;
    let of_pairs = law.correlation.square().sum(Kind::Double).double_value(&[]);
    let of_correlation = 2.0 * (1.0 - 1.0 / n as f64) * of_pairs;
    let deviation = (of_norms + of_correlation).sqrt() / p;
    let beyond = z.abs().gt(3.0).sum(Kind::Double).double_value(&[]);
    eprintln!(
        "{label}: {p} elements, mean z^2 {mean_square:.3} (1 +- {deviation:.3}), {beyond} beyond 3"
    );
    let distance = (mean_square - 1.0).abs() / deviation;
    assert!(distance < DEVIATIONS, "{label}: mean z^2 is {mean_square}, not 1 +- {deviation}");

    // By Markov's inequality on z^4, whose mean is 3 + (kurtosis of one draw - 3) / n.
    let fourth = standardized.pow_tensor_scalar(4).mean(Kind::Double).double_value(&[]);
    let share = (3.0 + (fourth - 3.0).max(0.0) / n as f64) / 3f64.powi(4);
    assert!(beyond / p < share, "{label}: {beyond} of {p} elements beyond 3, expected {share}");
}
