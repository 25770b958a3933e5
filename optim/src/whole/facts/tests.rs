//! Outputs, parts and what is refused.

use super::{Orientation, ParamFacts, Part};
use crate::group::Role;

#[test]
fn outputs_are_those_of_the_orientation() {
    let facts = |orientation| ParamFacts::new(&[3, 12], Role::Matrix, orientation);
    assert_eq!(facts(Orientation::OutIn).num_outputs(), 3);
    assert_eq!(facts(Orientation::InOut).num_outputs(), 12);
    assert_eq!(facts(Orientation::InOut).num_blocks(), 12);
    let norm = ParamFacts::new(&[12], Role::Norm, Orientation::InOut);
    assert_eq!((norm.output_dim(), norm.num_outputs(), norm.num_blocks()), (0, 12, 1));
    let bias = ParamFacts::new(&[12], Role::Bias, Orientation::InOut);
    assert_eq!(bias.num_blocks(), 12);
}

#[test]
fn what_is_no_parameter_is_refused() {
    for shape in [&[][..], &[2, 3, 4], &[0, 4]] {
        let facts = ParamFacts::new(shape, Role::Matrix, Orientation::OutIn);
        let text = facts.validate().unwrap_err().to_string();
        assert!(text.contains("expected one or two dims"), "{text}");
    }
    let facts = ParamFacts::new(&[6, 4], Role::Matrix, Orientation::OutIn);
    let part = |num_outputs, outputs_per_block| Part { num_outputs, outputs_per_block };
    assert!(facts.clone().with_parts(vec![part(4, 2), part(2, 1)]).validate().is_ok());
    for parts in [vec![part(4, 2)], vec![part(6, 4)], vec![part(6, 0)], vec![part(6, 1); 2]] {
        let text = facts.clone().with_parts(parts).validate().unwrap_err().to_string();
        assert!(text.contains("[6, 4] do not make up its 6 outputs"), "{text}");
    }
}
