//! Worked number, blocks, orientation and ranges of Adam-mini.

use super::{AdamMini, AdamMiniConfig};
use crate::group::Role;
use crate::whole::tests::{Run, gap, matrix, noise};
use crate::whole::{Orientation, ParamFacts, Part, WholeRuleConfig};
use tch::{Kind, Tensor};

fn run(facts: ParamFacts) -> Run {
    Run::new(WholeRuleConfig::AdamMini(AdamMiniConfig::default()), facts, Kind::Double)
}

#[test]
fn the_worked_number_of_the_docs() {
    let update = run(matrix(1, 2)).update(&Tensor::from_slice(&[3.0, 4.0]).view([1, 2]), 0.1);
    let expected = Tensor::from_slice(&[0.3, 0.4]).view([1, 2]) / 12.5_f64.sqrt();
    // `eps` is 1e-8 beside 3.5.
    assert!(gap(&update, &expected) < 3e-9, "{update}");
}

#[test]
fn blocks_of_one_element_are_adamw() {
    let mut run = run(ParamFacts::new(&[9], Role::Bias, Orientation::OutIn));
    let (mut m, mut v) = (noise(&[9], 0) * 0.0, noise(&[9], 0) * 0.0);
    for step in 1..=10 {
        let grad = noise(&[9], step);
        m = &m * 0.9 + &grad * 0.1;
        v = &v * 0.95 + grad.square() * 0.05;
        let corrected = v.sqrt() / (1.0 - 0.95_f64.powf(step as f64)).sqrt() + 1e-8;
        let expected = &m / corrected * (0.1 / (1.0 - 0.9_f64.powf(step as f64)));
        assert!(gap(&run.update(&grad, 0.1), &expected) < 1e-14);
    }
}

#[test]
fn each_block_has_the_mean_of_its_squares() {
    let parts = [(4, 2), (2, 1)];
    let parts =
        parts.map(|(num_outputs, outputs_per_block)| Part { num_outputs, outputs_per_block });
    let mut run = run(matrix(6, 3).with_parts(parts.to_vec()));
    let grad = noise(&[6, 3], 1);
    let _ = run.update(&grad, 0.1);
    let squares = grad.square();
    for (block, (start, outputs)) in (0_i64..).zip([(0, 2), (2, 2), (4, 1), (5, 1)]) {
        let mean = squares.narrow(0, start, outputs).mean(Kind::Double).double_value(&[]);
        let found = run.state[1].double_value(&[block]);
        assert!((found - 0.05 * mean).abs() < 1e-15, "block {block}: {found}, {mean}");
    }
}

#[test]
fn a_transposed_matrix_has_the_same_blocks() {
    let facts = |shape, orientation| {
        let part = Part { num_outputs: 6, outputs_per_block: 3 };
        ParamFacts::new(shape, Role::Matrix, orientation).with_parts(vec![part])
    };
    let mut plain = run(facts(&[6, 4], Orientation::OutIn));
    let mut transposed = run(facts(&[4, 6], Orientation::InOut));
    for seed in 0..3 {
        let grad = noise(&[6, 4], seed);
        let expected = plain.update(&grad, 0.1);
        assert!(gap(&transposed.update(&grad.tr(), 0.1).tr(), &expected) < 1e-15);
    }
}

#[test]
fn a_norm_is_one_block() {
    let mut run = run(ParamFacts::new(&[3], Role::Norm, Orientation::OutIn));
    let update = run.update(&Tensor::from_slice(&[1.0, 2.0, 2.0]), 3.0_f64.sqrt());
    assert!(gap(&update, &Tensor::from_slice(&[1.0, 2.0, 2.0])) < 1e-7, "{update}");
    assert_eq!(run.state[1].size(), [1]);
}

#[test]
fn ranges_are_named() {
    let text = |config| AdamMini::new(config).unwrap_err().to_string();
    let config = AdamMiniConfig { eps: 0.0, ..AdamMiniConfig::default() };
    assert!(text(config).starts_with("optim.eps = 0 is out of range: expected 1e-30 <= eps < 1"));
    let config = AdamMiniConfig { weight_decay: -1.0, ..AdamMiniConfig::default() };
    assert!(text(config).starts_with("optim.weight_decay = -1"));
}
