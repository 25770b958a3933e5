//! Defaults by role.

use super::{Groups, Role};

#[test]
fn only_norms_and_biases_do_not_decay() {
    let groups = Groups::default();
    for (role, decay) in [
        (Role::Matrix, 1.0),
        (Role::Embedding, 1.0),
        (Role::Norm, 0.0),
        (Role::Bias, 0.0),
        (Role::Head, 1.0),
    ] {
        assert_eq!(groups.of(role).weight_decay_multiplier, decay, "{role:?}");
        assert_eq!(groups.of(role).lr_multiplier, 1.0);
    }
}
