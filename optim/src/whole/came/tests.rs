//! Worked number, confidence, invariance and ranges of CAME.

use super::{Came, CameConfig};
use crate::group::Role;
use crate::whole::tests::{Run, gap, matrix, noise};
use crate::whole::{Orientation, ParamFacts, WholeRuleConfig};
use tch::{Kind, Tensor};

fn run(facts: ParamFacts, dtype: Kind) -> Run {
    Run::new(WholeRuleConfig::Came(CameConfig::default()), facts, dtype)
}

#[test]
fn the_worked_number_of_the_docs() {
    let mut run = run(matrix(1, 1), Kind::Double);
    let update = run.update(&Tensor::from_slice(&[0.5]).view([1, 1]), 1e-4);
    assert!((update.double_value(&[0, 0]) - 1e-5 / 0.009).abs() < 1e-12, "{update}");
}

#[test]
fn a_vector_steps_by_its_averaged_update() {
    let mut run = run(ParamFacts::new(&[2], Role::Norm, Orientation::OutIn), Kind::Double);
    let update = run.update(&Tensor::from_slice(&[3.0, -4.0]), 0.1);
    // Clipped to a root mean square of 1, both are 1; a tenth of that is averaged in.
    assert!(gap(&update, &Tensor::from_slice(&[0.01, -0.01])) < 1e-12, "{update}");
}

#[test]
fn rows_that_disagree_with_their_average_step_less() {
    let mut run = run(matrix(2, 8), Kind::Double);
    let grad = noise(&[1, 8], 1);
    for step in 0..100 {
        let factor = if step % 2 == 0 { 1.9 } else { 0.1 };
        let update = run.update(&Tensor::cat(&[&grad, &(&grad * factor)], 0), 0.1);
        if step == 99 {
            let ratio = |rows: &Tensor| {
                let norms = rows.norm_scalaropt_dim(2.0, [1], false);
                norms.double_value(&[1]) / norms.double_value(&[0])
            };
            let (update, momentum) = (ratio(&update), ratio(&run.state[0]));
            assert!(update < 0.8 * momentum, "{update} of the steady row's, momentum {momentum}");
        }
    }
}

#[test]
fn the_size_of_gradients_does_not_matter() {
    let (mut one, mut other) = (run(matrix(6, 9), Kind::Double), run(matrix(6, 9), Kind::Double));
    for seed in 0..5 {
        let grad = noise(&[6, 9], seed);
        let update = one.update(&grad, 0.1);
        assert!(gap(&other.update(&(grad * 1e-3), 0.1), &update) < 1e-12);
    }
}

#[test]
fn a_row_and_a_column_without_gradient_stay() {
    let mut run = run(matrix(4, 8), Kind::Float);
    for seed in 0..3 {
        let grad = (noise(&[4, 8], seed) * 1e-6).to_kind(Kind::Float);
        let _ = grad.narrow(0, 2, 1).fill_(0.0);
        let _ = grad.narrow(1, 3, 1).fill_(0.0);
        let update = run.update(&grad, 0.1);
        assert!(update.narrow(0, 2, 1).abs().max().double_value(&[]) == 0.0);
        assert!(update.narrow(1, 3, 1).abs().max().double_value(&[]) == 0.0);
        assert!(update.isfinite().all().int64_value(&[]) == 1, "{update}");
    }
}

#[test]
fn ranges_are_named() {
    let text = |config| Came::new(config).unwrap_err().to_string();
    let config = CameConfig { beta3: 1.0, ..CameConfig::default() };
    assert_eq!(
        text(config),
        "optim.beta3 = 1 is out of range: expected 0 <= value < 1; a usual value is 0.9999"
    );
    assert!(text(CameConfig { eps2: 0.0, ..CameConfig::default() }).contains("optim.eps2 = 0 "));
}
