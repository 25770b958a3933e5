//! First step, bases, equivariance and ranges of SOAP.

use super::{Soap, SoapConfig};
use crate::whole::WholeRuleConfig;
use crate::whole::tests::{Run, gap, matrix, noise, orthogonal};
use tch::{Device, Kind, Tensor};

/// Products of orthonormal matrices in f64.
const TOLERANCE: f64 = 1e-12;
/// Eigenvectors turn by the rounding error over the gap between eigenvalues.
const BASIS_TOLERANCE: f64 = 1e-9;

fn run(max_basis_dim: u64, rows: i64, cols: i64) -> Run {
    let config = SoapConfig { max_basis_dim, refresh_every: 4, ..SoapConfig::default() };
    Run::new(WholeRuleConfig::Soap(config), matrix(rows, cols), Kind::Double)
}

#[test]
fn the_worked_number_of_the_docs() {
    let mut run = run(10, 1, 1);
    let grad = Tensor::from_slice(&[2.0]).view([1, 1]);
    assert_eq!(run.update(&grad, 0.1).double_value(&[0, 0]), 0.0);
    let update = run.update(&grad, 0.1).double_value(&[0, 0]);
    // `eps` is 1e-8 beside the uncorrected root, 0.05^0.5 * 2.
    assert!((update - 0.1).abs() < 1e-8, "{update}");
}

#[test]
fn without_bases_it_is_adam_a_step_late() {
    let mut run = run(3, 5, 7);
    assert_eq!(run.state.len(), 2);
    let (mut m, mut v) = (noise(&[5, 7], 0) * 0.0, noise(&[5, 7], 0) * 0.0);
    let _ = run.update(&noise(&[5, 7], 99), 0.1);
    for step in 1..=10 {
        let grad = noise(&[5, 7], step);
        m = &m * 0.95 + &grad * 0.05;
        v = &v * 0.95 + grad.square() * 0.05;
        let power = 1.0 - 0.95_f64.powf(step as f64);
        let expected = &m / (v.sqrt() + 1e-8) * (0.1 * power.sqrt() / power);
        assert!(gap(&run.update(&grad, 0.1), &expected) < TOLERANCE);
    }
}

#[test]
fn bases_stay_orthonormal_and_sorted() {
    let mut run = run(10, 6, 6);
    for seed in 0..13 {
        let _ = run.update(&noise(&[6, 6], seed), 0.1);
        for side in [2, 4] {
            let (covariance, basis) = (&run.state[side], &run.state[side + 1]);
            let eye = Tensor::eye(6, (Kind::Double, Device::Cpu));
            assert!(gap(&basis.tr().mm(basis), &eye) < TOLERANCE);
            assert!(gap(&covariance.tr(), covariance) < TOLERANCE);
            if seed == 0 {
                let diagonal = basis.tr().mm(covariance).mm(basis);
                let values = diagonal.diagonal(0, 0, 1).contiguous();
                assert!(gap(&Tensor::diag(&values, 0), &diagonal) < TOLERANCE);
                assert!(values.diff::<Tensor>(1, 0, None, None).max().double_value(&[]) < 0.0);
            }
        }
    }
}

#[test]
fn a_refresh_moves_the_basis_and_keeps_the_momentum() {
    let mut run = run(10, 6, 6);
    let momentum = |run: &Run| run.state[3].mm(&run.state[0]).mm(&run.state[5].tr());
    for step in 1..=9 {
        let (before, basis) = (momentum(&run), run.state[3].copy());
        let grad = noise(&[6, 6], step);
        let _ = run.update(&grad, 0.1);
        if step > 1 {
            let expected = before * 0.95 + &grad * 0.05;
            assert!(gap(&momentum(&run), &expected) < TOLERANCE, "step {step}");
        }
        assert_eq!(run.state[3] != basis, [1, 5, 9].contains(&step), "step {step}");
    }
}

#[test]
fn a_rotated_gradient_has_the_rotated_update() {
    let (left, right) = (orthogonal(6, 50), orthogonal(6, 51));
    let (mut plain, mut rotated) = (run(10, 6, 6), run(10, 6, 6));
    for seed in 0..12 {
        let grad = noise(&[6, 6], seed);
        let expected = left.mm(&plain.update(&grad, 0.1)).mm(&right);
        let update = rotated.update(&left.mm(&grad).mm(&right), 0.1);
        assert!(seed == 0 || gap(&update, &expected) < BASIS_TOLERANCE, "step {seed}");
    }
}

#[test]
fn ranges_are_named() {
    let text = |config| Soap::new(config).unwrap_err().to_string();
    let config = SoapConfig { covariance_beta: 1.0, ..SoapConfig::default() };
    assert!(text(config).starts_with("optim.covariance_beta = 1 is out of range"));
    let config = SoapConfig { refresh_every: 0, ..SoapConfig::default() };
    assert!(text(config).starts_with("optim.refresh_every = 0"));
}
