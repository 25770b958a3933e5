//! Singular values, invariance, equivariance, parts and ranges of Muon.

use super::{Muon, MuonConfig, MuonPrecision, MuonScale};
use crate::group::Role;
use crate::whole::tests::{Run, gap, matrix, noise, orthogonal};
use crate::whole::{Orientation, ParamFacts, Part, WholeRuleConfig};
use tch::{Kind, Tensor};

/// Rounding errors in f64, lifted with small singular values by `3.4445^5`, about 485.
const TOLERANCE: f64 = 1e-11;

fn run(config: MuonConfig, facts: ParamFacts, dtype: Kind) -> Run {
    Run::new(WholeRuleConfig::Muon(config), facts, dtype)
}

/// `U S V^T` with singular values falling geometrically from 1 to `1 / condition`.
fn with_condition(rows: i64, cols: i64, condition: f64, seed: u64) -> Tensor {
    let size = rows.min(cols);
    let exponents = Tensor::linspace(0.0, -1.0, size, (Kind::Double, tch::Device::Cpu));
    let values = (exponents * condition.ln()).exp();
    let left = orthogonal(rows, seed).narrow(1, 0, size);
    let right = orthogonal(cols, seed + 1).narrow(1, 0, size);
    (left * values).mm(&right.tr())
}

#[test]
fn the_worked_number_of_the_docs() {
    let mut run = run(MuonConfig::default(), matrix(1, 1), Kind::Double);
    let update = run.update(&Tensor::from_slice(&[3.0]).view([1, 1]), 1.0).double_value(&[0, 0]);
    assert!((update - 0.2 * 0.6964).abs() < 1e-5, "{update}");
}

#[test]
fn singular_values_come_near_one() {
    for dtype in [Kind::Double, Kind::Float] {
        for (rows, cols) in [(8, 8), (12, 5), (5, 12), (16, 64)] {
            for condition in [1.0, 10.0, 100.0] {
                for seed in 0..5 {
                    let grad = with_condition(rows, cols, condition, seed).to_kind(dtype);
                    let mut run = run(MuonConfig::default(), matrix(rows, cols), dtype);
                    let update = run.update(&grad, 1.0) / (0.2 * (rows.max(cols) as f64).sqrt());
                    let (_, values, _) = update.svd(true, true);
                    let (lowest, highest) =
                        (values.min().double_value(&[]), values.max().double_value(&[]));
                    let inside = 0.65 <= lowest && highest <= 1.2;
                    assert!(inside, "{rows}x{cols}, {condition}: {lowest} to {highest}");
                }
            }
        }
    }
}

#[test]
fn the_size_of_gradients_does_not_matter() {
    for factor in [1e-3, 1e6] {
        let mut one = run(MuonConfig::default(), matrix(6, 9), Kind::Double);
        let mut other = run(MuonConfig::default(), matrix(6, 9), Kind::Double);
        for seed in 0..5 {
            let grad = noise(&[6, 9], seed);
            let update = one.update(&grad, 0.1);
            assert!(gap(&other.update(&(grad * factor), 0.1), &update) < TOLERANCE);
        }
    }
}

#[test]
fn a_rotated_gradient_has_the_rotated_update() {
    let (left, right) = (orthogonal(6, 50), orthogonal(9, 51));
    let mut plain = run(MuonConfig::default(), matrix(6, 9), Kind::Double);
    let mut rotated = run(MuonConfig::default(), matrix(6, 9), Kind::Double);
    for seed in 0..5 {
        let grad = noise(&[6, 9], seed);
        let expected = left.mm(&plain.update(&grad, 0.1)).mm(&right);
        assert!(gap(&rotated.update(&left.mm(&grad).mm(&right), 0.1), &expected) < TOLERANCE);
    }
}

#[test]
fn each_part_is_a_matrix_of_its_own() {
    for scale in [MuonScale::Original, MuonScale::MatchRms] {
        let config = MuonConfig { scale, ..MuonConfig::default() };
        let parts = [8, 4].map(|num_outputs| Part { num_outputs, outputs_per_block: 1 });
        let fused = ParamFacts::new(&[5, 12], Role::Matrix, Orientation::InOut);
        let mut fused = run(config, fused.with_parts(parts.to_vec()), Kind::Double);
        let mut first = run(config, matrix(8, 5), Kind::Double);
        let mut second = run(config, matrix(4, 5), Kind::Double);
        for seed in 0..3 {
            let grad = noise(&[5, 12], seed);
            let update = fused.update(&grad, 0.1);
            let expected = first.update(&grad.narrow(1, 0, 8).tr(), 0.1).tr();
            assert!(gap(&update.narrow(1, 0, 8), &expected) < TOLERANCE);
            let expected = second.update(&grad.narrow(1, 8, 4).tr(), 0.1).tr();
            assert!(gap(&update.narrow(1, 8, 4), &expected) < TOLERANCE);
        }
    }
}

#[test]
fn scales_are_those_of_outputs_and_inputs() {
    let muon = |scale| Muon::new(MuonConfig { scale, ..MuonConfig::default() }).unwrap();
    let original = muon(MuonScale::Original);
    assert_eq!(original.scale(&[12, 3], Orientation::OutIn), 2.0);
    assert_eq!(original.scale(&[12, 3], Orientation::InOut), 1.0);
    assert_eq!(original.scale(&[3, 12], Orientation::InOut), 2.0);
    let matching = muon(MuonScale::MatchRms);
    for orientation in [Orientation::OutIn, Orientation::InOut] {
        assert_eq!(matching.scale(&[16, 4], orientation), 0.8);
    }
}

#[test]
fn without_nesterov_the_momentum_itself_is_orthogonal() {
    let config = MuonConfig { nesterov: false, ..MuonConfig::default() };
    let (mut plain, mut fresh) =
        (run(config, matrix(6, 9), Kind::Double), run(config, matrix(6, 9), Kind::Double));
    let _ = plain.update(&noise(&[6, 9], 1), 0.1);
    let update = plain.update(&noise(&[6, 9], 2), 0.1);
    let momentum = plain.state[0].copy();
    assert!(gap(&fresh.update(&momentum, 0.1), &update) < TOLERANCE);
}

#[test]
fn bf16_goes_the_same_way() {
    let config = MuonConfig { precision: MuonPrecision::Bf16, ..MuonConfig::default() };
    let grad = with_condition(16, 24, 20.0, 3).to_kind(Kind::Float);
    let rough = run(config, matrix(16, 24), Kind::Float).update(&grad, 0.1);
    let exact = run(MuonConfig::default(), matrix(16, 24), Kind::Float).update(&grad, 0.1);
    assert_eq!(rough.kind(), Kind::Float);
    let product = (&rough * &exact).sum(Kind::Double);
    let cosine = (product / (rough.norm() * exact.norm())).double_value(&[]);
    assert!(cosine > 0.999, "{cosine}");
    assert!(gap(&rough, &exact) > 1e-4, "bf16 must round");
}

#[test]
fn ranges_are_named() {
    let text = |config| Muon::new(config).unwrap_err().to_string();
    let config = MuonConfig { momentum: 1.0, ..MuonConfig::default() };
    assert!(text(config).starts_with("optim.momentum = 1 is out of range"));
    let config = MuonConfig { num_iterations: 0, ..MuonConfig::default() };
    assert_eq!(
        text(config),
        "optim.num_iterations = 0 is out of range: expected an integer >= 1; a usual value is 5"
    );
}
