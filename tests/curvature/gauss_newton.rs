//! Gauss-Newton-Bartlett: the expectation over all label draws, and draws against their exact law.

use grove::curvature::{Curvature, Estimator};
use grove::model::plain::PlainModel;
use tch::{Kind, Tensor};

use super::{
    EXACT, Law, NO_VARIANCE, NUM_TOKENS, Step, check_law, estimate, largest, leaves, micro_batches,
    sampled, subject, tiny_models,
};
use crate::fixture::Fixture;

const UNCLIPPED: Estimator = Estimator::GaussNewtonBartlett { clip_norm: 0.0 };
/// Labels of a position.
const VOCAB: usize = 4;

/// What the model predicts at a position that counts.
struct Prediction {
    /// Its micro-batch, and its place therein.
    at: (usize, usize),
    /// Of each label.
    probabilities: Vec<f64>,
    /// The gradient of each label's log-probability, `[P]`.
    gradients: Vec<Tensor>,
}

/// By ordinary autograd on the plain model.
fn predictions(fixture: &Fixture) -> Vec<Prediction> {
    let (model, weights) = (PlainModel::new(&fixture.config), leaves(fixture));
    let parameters: Vec<&Tensor> = weights.values().collect();
    let (subject, _) = subject(fixture);
    let mut found = Vec::new();
    for (number, tokens) in micro_batches(&subject.compute).iter().enumerate() {
        let log = tch::with_grad(|| {
            model.logits(&weights, &tokens.inputs).log_softmax(-1, Kind::Double).squeeze()
        });
        for place in 0..tokens.targets.numel() {
            if tokens.targets.int64_value(&[place as i64]) < 0 {
                continue;
            }
            let (mut probabilities, mut gradients) = (Vec::new(), Vec::new());
            for label in 0..VOCAB {
                let term = tch::with_grad(|| log.get(place as i64).get(label as i64));
                probabilities.push(term.double_value(&[]).exp());
                let grads = Tensor::run_backward(&[term], &parameters, true, false);
                let grads: Vec<Tensor> = grads.iter().map(|grad| grad.reshape([-1])).collect();
                gradients.push(Tensor::cat(&grads, 0));
            }
            found.push(Prediction { at: (number, place), probabilities, gradients });
        }
    }
    assert_eq!(found.len() as f64, NUM_TOKENS);
    found
}

/// `mean over tokens of sum_k p_k (d log p_k)^2`: the diagonal of the Gauss-Newton matrix of the
/// mean loss, `[P]`.
fn gauss_newton(predictions: &[Prediction]) -> Tensor {
    let mut sum = predictions[0].gradients[0].zeros_like();
    for Prediction { probabilities, gradients, .. } in predictions {
        for (probability, gradient) in probabilities.iter().zip(gradients) {
            sum += gradient.square() * *probability;
        }
    }
    sum / NUM_TOKENS
}

/// Every way to label the positions, with its probability.
fn outcomes(predictions: &[Prediction]) -> Vec<(Vec<usize>, f64)> {
    let count = VOCAB.pow(predictions.len() as u32);
    let labels = |outcome: usize| {
        (0..predictions.len()).map(move |place| outcome / VOCAB.pow(place as u32) % VOCAB)
    };
    (0..count)
        .map(|outcome| {
            let chosen = labels(outcome).zip(predictions);
            let probability = chosen.map(|(label, it)| it.probabilities[label]).product();
            (labels(outcome).collect(), probability)
        })
        .collect()
}

/// Uniform numbers by micro-batch that choose these labels: near one end of a label's interval and
/// near the other in turns, so that a wrong cumulated probability chooses a wrong label.
fn draws(predictions: &[Prediction], labels: &[usize], is_low: bool) -> Vec<Tensor> {
    let mut draws = [vec![0.5; 2], vec![0.5; 3]];
    for (Prediction { at: (number, place), probabilities, .. }, &label) in
        predictions.iter().zip(labels)
    {
        let below: f64 = probabilities[..label].iter().sum();
        let part = if is_low { 1e-3 } else { 1.0 - 1e-3 };
        draws[*number][*place] = below + part * probabilities[label];
    }
    draws.iter().map(|draws| Tensor::from_slice(draws)).collect()
}

/// The estimates of all outcomes `[M, P]`, and their probabilities `[M]`.
fn enumerated(fixture: &Fixture, predictions: &[Prediction]) -> (Tensor, Tensor) {
    let (mut subject, rules) = subject(fixture);
    let curvature = Curvature { every: 1, estimator: UNCLIPPED, seed: 7 };
    let (mut rows, mut weights) = (Vec::new(), Vec::new());
    for (index, (labels, probability)) in outcomes(predictions).into_iter().enumerate() {
        let draws = draws(predictions, &labels, index % 2 == 0);
        let step = Step { number: 0, draws: Some(&draws) };
        rows.push(estimate(&mut subject, (&curvature, &rules), step));
        weights.push(probability);
    }
    (Tensor::stack(&rows, 0), Tensor::from_slice(&weights))
}

/// The law of estimates that are enumerated.
fn law(estimates: &Tensor, weights: &Tensor) -> Law {
    let weights = weights.unsqueeze(-1);
    let mean = |values: &Tensor| {
        (values * &weights).sum_dim_intlist([0i64].as_slice(), false, Kind::Double)
    };
    let centered = estimates - mean(estimates);
    let variance = mean(&centered.square());
    let kept = variance.gt(largest(&variance) * NO_VARIANCE).nonzero().view(-1);
    let standardized = (&centered / variance.sqrt()).index_select(1, &kept);
    let correlation = standardized.transpose(0, 1).matmul(&(&standardized * &weights));
    Law { mean: mean(estimates), variance, correlation }
}

#[test]
fn the_mean_over_all_labels_is_the_diagonal() {
    for (label, fixture) in tiny_models() {
        let predictions = predictions(&fixture);
        let exact = gauss_newton(&predictions);
        let (estimates, weights) = enumerated(&fixture, &predictions);
        let mean = law(&estimates, &weights).mean;
        let error = largest(&(mean - &exact)) / largest(&exact);
        let outcomes = weights.numel();
        eprintln!("{label}: off by {error:.1e} of the largest element, over {outcomes} outcomes");
        assert!(error < EXACT, "{label}: {error}");
    }
}

#[test]
fn drawn_labels_give_estimates_of_the_exact_law() {
    for (label, fixture) in tiny_models() {
        let predictions = predictions(&fixture);
        let (estimates, weights) = enumerated(&fixture, &predictions);
        let law = Law { mean: gauss_newton(&predictions), ..law(&estimates, &weights) };
        let found = sampled(&fixture, UNCLIPPED);
        check_law(label, &found, &law);

        let trace = |rows: &Tensor| rows.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        let exact = law.mean.sum(Kind::Double).double_value(&[]);
        let spread = (trace(&estimates) - exact).square() * &weights;
        let error = (spread.sum(Kind::Double).double_value(&[]) / found.size()[0] as f64).sqrt();
        let beyond = (trace(&found).mean(Kind::Double).double_value(&[]) - exact) / error;
        eprintln!("{label}: the trace is {beyond:.2} standard errors from {exact}");
        assert!(beyond.abs() < super::DEVIATIONS, "{label}: {beyond}");
    }
}

#[test]
fn the_sampled_gradient_can_be_clipped() {
    let [(_, fixture), _] = tiny_models();
    let trace = |clip_norm: f64| {
        let (mut subject, rules) = subject(&fixture);
        let estimator = Estimator::GaussNewtonBartlett { clip_norm };
        let curvature = Curvature { every: 1, estimator, seed: 7 };
        let step = Step { number: 0, draws: None };
        let found = estimate(&mut subject, (&curvature, &rules), step);
        found.sum(Kind::Double).double_value(&[])
    };
    // The trace is the number of tokens times the squared norm of the mean gradient.
    let norm = (trace(0.0) / NUM_TOKENS).sqrt();
    let clipped = trace(norm / 2.0);
    assert!((clipped / trace(0.0) - 0.25).abs() < 1e-4, "{clipped}");
}
