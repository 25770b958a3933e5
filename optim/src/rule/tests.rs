//! Names and states of rules, the numbers of a step, and what a non-finite gradient may spoil.

use crate::sample::{Buffers, SCALARS, Stored, rules};
use crate::{
    AdamWConfig, Groups, MIN_QUANTIZED_ELEMENTS, Role, RuleConfig, Start, StateKind, StepNumbers,
    Storage,
};

#[test]
fn names_and_states_are_stable() {
    let expected: [(&str, &[&str]); 8] = [
        ("adamw", &["exp_avg", "exp_avg_sq"]),
        ("adamw", &["exp_avg", "exp_avg_sq"]),
        ("lion", &["exp_avg"]),
        ("lion", &["exp_avg"]),
        ("sophia", &["exp_avg", "hessian"]),
        ("schedule_free", &["z", "exp_avg_sq"]),
        ("adamw_8bit", &["exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax"]),
        ("lion_8bit", &["exp_avg", "exp_avg_absmax"]),
    ];
    for (rule, (name, states)) in rules().iter().zip(expected) {
        let specs = rule.state_specs(MIN_QUANTIZED_ELEMENTS);
        let found: Vec<_> = specs.iter().map(|spec| spec.kind.name()).collect();
        assert_eq!((rule.name(), &found[..]), (name, states));
    }
    assert_eq!(StateKind::BaseIterate.start(), Start::Master);
    assert_eq!(StateKind::SecondMoment.start(), Start::Zero);
}

/// State bytes of one element, times 1000.
fn millibytes(rule: &crate::Rule, numel: usize) -> usize {
    let bytes = |spec: &crate::StateSpec| {
        let size = match spec.storage {
            Storage::Accumulation | Storage::BlockScale => 4,
            Storage::Bf16 => 2,
            Storage::Codes => 1,
        };
        size * spec.storage.num_elements(numel)
    };
    rule.state_specs(numel).iter().map(bytes).sum::<usize>() * 1000 / numel
}

#[test]
fn states_cost_what_the_table_says() {
    let found: Vec<_> = rules().iter().map(|rule| millibytes(rule, 1 << 20)).collect();
    assert_eq!(found, [8000, 4000, 4000, 2000, 8000, 8000, 2031, 1015]);
    let small: Vec<_> = rules().iter().map(|rule| millibytes(rule, 4095)).collect();
    assert_eq!(small, [8000, 4000, 4000, 2000, 8000, 8000, 8000, 4000]);
}

#[test]
fn scalars_fold_in_the_group() {
    let rule = RuleConfig::AdamW(AdamWConfig::default()).build().unwrap();
    let mut groups = Groups::default();
    groups.head.lr_multiplier = 0.5;
    let step = StepNumbers {
        lr: 1e-3,
        grad_scale: 0.25,
        step: 7,
        averaging_weight: 0.125,
        rounding_seed: 9,
    };
    let head = rule.scalars(groups.of(Role::Head), &step);
    assert_eq!((head.lr, head.weight_decay, head.grad_scale, head.step), (5e-4, 0.1, 0.25, 7));
    assert_eq!((head.averaging_weight, head.rounding_seed), (0.125, 9));
    assert_eq!(rule.scalars(groups.of(Role::Norm), &step).weight_decay, 0.0);
}

#[test]
fn a_non_finite_gradient_spoils_its_own_element_only() {
    const BAD: usize = 300;
    for rule in rules() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut buffers = Buffers::<f32>::new(rule.state_specs(usize::MAX), 600, 3);
            let mut sound = buffers.clone();
            buffers.grad[BAD] = bad;
            sound.grad[BAD] = 0.0;
            rule.update(buffers.elements(true), &SCALARS).unwrap();
            rule.update(sound.elements(true), &SCALARS).unwrap();
            if bad.is_nan() || rule.name().starts_with("adamw") {
                assert!(buffers.master[BAD].is_nan(), "{} hides {bad}", rule.name());
            }
            for i in (0..600).filter(|&i| i != BAD) {
                assert_eq!(buffers.master[i], sound.master[i], "{}: element {i}", rule.name());
            }
            for (state, sound) in buffers.state.iter().zip(&sound.state) {
                let quantized = matches!(state, Stored::Codes(_) | Stored::BlockScale(_));
                for (i, (state, sound)) in state.to_f64().iter().zip(sound.to_f64()).enumerate() {
                    let spoiled = i == BAD && !quantized;
                    assert!(*state == sound || spoiled, "{}: state {i}", rule.name());
                }
            }
        }
    }
}
