//! Hutchinson: the mean over a set of directions that are orthogonal together, which is exact, and
//! draws against their exact law.

use std::collections::BTreeMap;

use grove::curvature::{Estimator, Probe, products};
use grove::model::plain::PlainModel;
use tch::{Kind, Tensor};

use super::{
    EXACT, Law, NO_VARIANCE, NUM_TOKENS, check_law, in_order, largest, leaves, micro_batches,
    sampled, subject, tiny_models,
};
use crate::fixture::Fixture;

/// The Hessian of the mean loss, `[P, P]`, a row at a time.
fn hessian(fixture: &Fixture) -> Tensor {
    let (model, weights) = (PlainModel::new(&fixture.config), leaves(fixture));
    let parameters: Vec<&Tensor> = weights.values().collect();
    let (subject, _) = subject(fixture);
    let flat = |parts: &[Tensor]| {
        Tensor::cat(&parts.iter().map(|part| part.reshape([-1])).collect::<Vec<_>>(), 0)
    };
    let gradient = tch::with_grad(|| {
        let losses = micro_batches(&subject.compute)
            .iter()
            .map(|tokens| {
                let rows = (&tokens.inputs, &tokens.targets);
                model.loss_sum_in_segments(&weights, rows, None)
            })
            .collect::<Vec<_>>();
        let loss = Tensor::stack(&losses, 0).sum(Kind::Double) / NUM_TOKENS;
        flat(&Tensor::run_backward(&[loss], &parameters, true, true))
    });
    let row = |index| {
        let element = tch::with_grad(|| gradient.get(index));
        flat(&Tensor::run_backward(&[element], &parameters, true, false))
    };
    Tensor::stack(&(0..gradient.numel() as i64).map(row).collect::<Vec<_>>(), 0)
}

/// Column `index` of a Hadamard matrix (Sylvester's), cut to the shapes of the parameters.
fn hadamard(fixture: &Fixture, index: usize) -> BTreeMap<String, Tensor> {
    let mut row = 0usize;
    let mut probe = BTreeMap::new();
    for (name, tensor) in fixture.params() {
        let sign =
            |row: usize| if (row & index).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let values: Vec<f64> = (row..row + tensor.numel()).map(sign).collect();
        row += tensor.numel();
        probe.insert(name, Tensor::from_slice(&values).view(tensor.size().as_slice()));
    }
    probe
}

/// `u (H u)` is the diagonal and `u_i H_ij u_j` of all others; with the columns of a Hadamard matrix
/// as `u`, each of these sums to zero: the mean over all sign vectors, by as many as there are rows.
#[test]
fn the_mean_over_orthogonal_directions_is_the_diagonal() {
    for (label, fixture) in tiny_models() {
        let exact = hessian(&fixture).diagonal(0, 0, 1);
        let (model, weights) = (PlainModel::new(&fixture.config), leaves(&fixture));
        let (subject, _) = subject(&fixture);
        let micro_batches = micro_batches(&subject.compute);
        let count = exact.numel().next_power_of_two();
        let mut sum = exact.zeros_like();
        for index in 0..count {
            let probes = hadamard(&fixture, index);
            for tokens in &micro_batches {
                sum += in_order(products(&model, &weights, &probes, tokens));
            }
        }
        let mean = sum / (count as f64 * NUM_TOKENS);
        let error = largest(&(mean - &exact)) / largest(&exact);
        eprintln!("{label}: off by {error:.1e} of the largest element, over {count} directions");
        assert!(error < EXACT, "{label}: {error}");
    }
}

/// For independent entries of mean 0 and variance 1, `u_i (H u)_i` and `u_j (H u)_j` have the
/// covariance `H_ij^2`, and the variance is the sum of `H_ij^2` over `j != i`, for normal ones with
/// `2 H_ii^2` more.
fn law(hessian: &Tensor, probe: Probe) -> Law {
    let diagonal = hessian.diagonal(0, 0, 1);
    let squares = hessian.square();
    let row_sums = squares.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let variance = match probe {
        Probe::Rademacher => row_sums - diagonal.square(),
        Probe::Gaussian => row_sums + diagonal.square(),
    };
    let kept = variance.gt(largest(&variance) * NO_VARIANCE).nonzero().view(-1);
    let deviation = variance.sqrt().index_select(0, &kept);
    let covariance = squares.index_select(0, &kept).index_select(1, &kept);
    let correlation = covariance / deviation.outer(&deviation);
    let _ = correlation.diagonal(0, 0, 1).fill_(1.0);
    Law { mean: diagonal, variance, correlation }
}

#[test]
fn drawn_directions_give_estimates_of_the_exact_law() {
    for (label, fixture) in tiny_models() {
        let hessian = hessian(&fixture);
        for probe in [Probe::Rademacher, Probe::Gaussian] {
            let model = Box::new(PlainModel::new(&fixture.config));
            let found = sampled(&fixture, Estimator::Hutchinson { probe, model });
            check_law(&format!("{label}, {probe:?}"), &found, &law(&hessian, probe));
        }
    }
}
