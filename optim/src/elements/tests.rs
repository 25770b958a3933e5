//! Refusals: wrong lengths, wrong counts, wrong numbers; and nothing written then.

use crate::{AdamWConfig, Elements, LionConfig, RuleConfig, Scalars, Working};
use half::bf16;

const GOOD: Scalars = Scalars { lr: 0.1, weight_decay: 0.1, grad_scale: 1.0, step: 1 };

/// The error text of an AdamW update with buffers of these lengths (master has 4 elements).
fn refusal(grad: usize, states: &[usize], working: usize, scalars: Scalars) -> String {
    let rule = RuleConfig::AdamW(AdamWConfig::default()).build().unwrap();
    let mut master = vec![1.0_f32; 4];
    let mut states: Vec<Vec<f32>> = states.iter().map(|&n| vec![0.0; n]).collect();
    let mut copy = vec![bf16::ZERO; working];
    let elements = Elements {
        master: &mut master,
        grad: &vec![1.0; grad],
        state: states.iter_mut().map(|s| &mut s[..]).collect(),
        working: Working::Bf16(&mut copy),
    };
    let error = rule.update(elements, &scalars).unwrap_err().to_string();
    assert_eq!(master, [1.0; 4], "nothing may be written before a refusal");
    error
}

#[test]
fn lengths_and_counts_are_named() {
    assert!(refusal(3, &[4, 4], 4, GOOD).starts_with("buffer grad has 3 elements where master"));
    assert!(refusal(4, &[4, 5], 4, GOOD).starts_with("buffer exp_avg_sq has 5 elements"));
    assert!(refusal(4, &[4, 4], 0, GOOD).starts_with("buffer working has 0 elements"));
    assert_eq!(
        refusal(4, &[4], 4, GOOD),
        "rule adamw takes 2 state buffers (see Rule::state_kinds), found 1"
    );
}

#[test]
fn scalars_are_named() {
    let refused = |scalars| refusal(4, &[4, 4], 4, scalars);
    let step = refused(Scalars { step: 0, ..GOOD });
    assert_eq!(step, "the step of an update is 0: expected step >= 1, updates count from one");
    assert!(refused(Scalars { lr: f64::NAN, ..GOOD }).contains("the lr of an update is NaN"));
    assert!(refused(Scalars { lr: -1.0, ..GOOD }).contains("the lr of an update is -1"));
    let decay = refused(Scalars { weight_decay: 11.0, ..GOOD });
    assert!(decay.contains("lr * weight_decay of an update is 1.1"), "{decay}");
    let scale = refused(Scalars { grad_scale: f64::NAN, ..GOOD });
    assert!(scale.contains("the grad_scale of an update is NaN"), "{scale}");
}

#[test]
fn an_empty_range_is_fine() {
    let rule = RuleConfig::Lion(LionConfig::default()).build().unwrap();
    let elements = Elements::<f32> {
        master: &mut [],
        grad: &[],
        state: vec![&mut []],
        working: Working::Bf16(&mut []),
    };
    rule.update(elements, &GOOD).unwrap();
}
