//! Names and states of rules, and the numbers of a step.

use crate::{AdamWConfig, Groups, LionConfig, Role, RuleConfig, StateKind};

#[test]
fn names_and_states_are_stable() {
    let adamw = RuleConfig::AdamW(AdamWConfig::default()).build().unwrap();
    let lion = RuleConfig::Lion(LionConfig::default()).build().unwrap();
    let names = |rule: crate::Rule| -> Vec<_> {
        rule.state_kinds().iter().map(|kind: &StateKind| kind.name()).collect()
    };
    assert_eq!((adamw.name(), names(adamw)), ("adamw", vec!["exp_avg", "exp_avg_sq"]));
    assert_eq!((lion.name(), names(lion)), ("lion", vec!["exp_avg"]));
}

#[test]
fn scalars_fold_in_the_group() {
    let rule = RuleConfig::AdamW(AdamWConfig::default()).build().unwrap();
    let mut groups = Groups::default();
    groups.head.lr_multiplier = 0.5;
    let head = rule.scalars(groups.of(Role::Head), 1e-3, 0.25, 7);
    assert_eq!((head.lr, head.weight_decay, head.grad_scale, head.step), (5e-4, 0.1, 0.25, 7));
    assert_eq!(rule.scalars(groups.of(Role::Norm), 1e-3, 0.25, 7).weight_decay, 0.0);
}
