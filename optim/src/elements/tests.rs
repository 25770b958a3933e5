//! Refusals: wrong lengths, counts, storages and numbers; nothing written then; and cuts.

use crate::sample::{Buffers, SCALARS, Stored, rules};
use crate::{
    AdamW8bitConfig, AdamWConfig, Elements, LionConfig, RuleConfig, Scalars, StateSlice, Working,
};
use half::bf16;

/// The error text of an AdamW update with buffers of these lengths (master has 4 elements).
fn refusal(grad: usize, states: &[usize], working: usize, scalars: Scalars) -> String {
    let rule = RuleConfig::AdamW(AdamWConfig::default()).build().unwrap();
    let mut master = vec![1.0_f32; 4];
    let mut states: Vec<Vec<f32>> = states.iter().map(|&n| vec![0.0; n]).collect();
    let mut copy = vec![bf16::ZERO; working];
    let elements = Elements {
        master: &mut master,
        grad: &vec![1.0; grad],
        state: states.iter_mut().map(|s| StateSlice::Values(s)).collect(),
        working: Working::Bf16(&mut copy),
        first: 0,
    };
    let error = rule.update(elements, &scalars).unwrap_err().to_string();
    assert_eq!(master, [1.0; 4], "nothing may be written before a refusal");
    error
}

#[test]
fn lengths_and_counts_are_named() {
    assert!(refusal(3, &[4, 4], 4, SCALARS).starts_with("buffer grad has 3 elements where the"));
    assert!(refusal(4, &[4, 5], 4, SCALARS).starts_with("buffer exp_avg_sq has 5 elements"));
    assert!(refusal(4, &[4, 4], 0, SCALARS).starts_with("buffer working has 0 elements"));
    assert_eq!(
        refusal(4, &[4], 4, SCALARS),
        "rule adamw takes 2 state buffers (see Rule::state_specs), found 1"
    );
    assert!(refusal(4, &[4, 4, 4], 4, SCALARS).ends_with("found 3"));
}

#[test]
fn scalars_are_named() {
    let refused = |scalars| refusal(4, &[4, 4], 4, scalars);
    let step = refused(Scalars { step: 0, ..SCALARS });
    assert_eq!(step, "the step of an update is 0: expected step >= 1, updates count from one");
    assert!(refused(Scalars { lr: f64::NAN, ..SCALARS }).contains("the lr of an update is NaN"));
    assert!(refused(Scalars { lr: -1.0, ..SCALARS }).contains("the lr of an update is -1"));
    let decay = refused(Scalars { lr: 0.1, weight_decay: 11.0, ..SCALARS });
    assert!(decay.contains("lr * weight_decay of an update is 1.1"), "{decay}");
    let scale = refused(Scalars { grad_scale: f64::NAN, ..SCALARS });
    assert!(scale.contains("the grad_scale of an update is NaN"), "{scale}");
    let average = refused(Scalars { averaging_weight: 0.0, ..SCALARS });
    assert!(average.contains("the averaging_weight of an update is 0"), "{average}");
}

#[test]
fn an_empty_range_is_fine() {
    for rule in rules() {
        let mut buffers = Buffers::<f32>::new(rule.state_specs(usize::MAX), 0, 1);
        rule.update(buffers.elements(true), &SCALARS).unwrap();
    }
}

#[test]
fn storages_are_named() {
    let rule = RuleConfig::Lion(LionConfig::default()).build().unwrap();
    let mut buffers = Buffers::<f32>::new(rule.state_specs(4), 4, 1);
    buffers.state = vec![Stored::Bf16(vec![bf16::ZERO; 4])];
    assert_eq!(
        rule.update(buffers.elements(false), &SCALARS).unwrap_err().to_string(),
        "state exp_avg has bf16 values: expected values of the master's dtype; allocate it by \
         Rule::state_specs of the parameter's number of elements"
    );
    let quantized = RuleConfig::AdamW8bit(AdamW8bitConfig::default()).build().unwrap();
    let mut buffers = Buffers::<f32>::new(quantized.state_specs(4096), 600, 1);
    buffers.state[1] = Stored::BlockScale(vec![0.0; 2]);
    let error = quantized.update(buffers.elements(false), &SCALARS).unwrap_err().to_string();
    assert!(error.starts_with("buffer exp_avg_absmax has 2 elements where the range has 3"));
    buffers.state.truncate(1);
    let error = quantized.update(buffers.elements(false), &SCALARS).unwrap_err().to_string();
    assert!(error.starts_with("rule adamw_8bit takes 4 state buffers"), "{error}");
}

#[test]
fn a_quantized_range_begins_with_a_block() {
    let rule = RuleConfig::AdamW8bit(AdamW8bitConfig::default()).build().unwrap();
    let mut buffers = Buffers::<f32>::new(rule.state_specs(4096), 256, 1);
    let elements = Elements { first: 100, ..buffers.elements(false) };
    let error = rule.update(elements, &SCALARS).unwrap_err().to_string();
    assert!(error.starts_with("the range begins at element 100 of its parameter"), "{error}");
}

#[test]
fn a_cut_within_a_block_panics_and_a_truncation_does_not() {
    let rule = RuleConfig::AdamW8bit(AdamW8bitConfig::default()).build().unwrap();
    let mut buffers = Buffers::<f32>::new(rule.state_specs(4096), 768, 1);
    let cut = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = buffers.elements(false).split_at(300);
    }));
    let text = *cut.unwrap_err().downcast::<String>().unwrap();
    assert!(text.starts_with("element 300 of a parameter is within a block of 256"), "{text}");
    let (_, tail) = buffers.elements(true).split_at(256);
    let tail = tail.truncate(300);
    assert_eq!((tail.first, tail.master.len()), (256, 300));
    rule.update(tail, &SCALARS).unwrap();
}
