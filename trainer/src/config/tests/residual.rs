//! Residual forms: what schemes bring, and what they refuse.

use super::super::plan::Group;
use super::{GPT2, LLAMA, Plan, plan, refusal};
use crate::model::config::{BranchGain, NormPlacement, ResidualForm};

fn form(text: &str, sets: &[&str]) -> ResidualForm {
    plan(text, sets).model.spec().residual
}

#[test]
fn schemes_bring_their_form() {
    let plain = ResidualForm::default();
    for text in [LLAMA, GPT2] {
        assert_eq!(form(text, &["init.scheme=xavier"]), plain);
        let bare = ResidualForm { norm: NormPlacement::None, ..plain };
        assert_eq!(form(text, &["init.scheme=t_fixup"]), bare);
        let rezero = ResidualForm { gain: BranchGain::Block, ..bare };
        assert_eq!(form(text, &["init.scheme=rezero"]), rezero);
        let skipinit = ResidualForm { gain: BranchGain::Branch, ..bare };
        assert_eq!(form(text, &["init.scheme=skipinit"]), skipinit);
        let fixup = ResidualForm { scalar_biases: true, ..skipinit };
        assert_eq!(form(text, &["init.scheme=fixup"]), fixup);
        let subln = ResidualForm { norm: NormPlacement::Sub, ..plain };
        assert_eq!(form(text, &["init.scheme=subln"]), subln);
        // Written as the scheme has it, it is the same.
        assert_eq!(form(text, &["init.scheme=rezero", "model.residual.gain=block"]), rezero);
    }
    let deepnorm = form(LLAMA, &["init.scheme=deepnorm", "model.num_hidden_layers=8"]);
    // (2 * 8)^(1/4).
    let expected = ResidualForm { norm: NormPlacement::Post, skip: 2.0, ..plain };
    assert_eq!(deepnorm, expected);
}

#[test]
fn forms_go_with_any_other_scheme_and_into_the_plan() {
    let sets = ["model.residual.norm=post", "model.residual.skip=1.5", "init.scheme=xavier"];
    let written = plan(LLAMA, &sets);
    let text = written.to_toml();
    assert!(text.contains("[model.residual]\nnorm = \"post\""), "{text}");
    let again: Plan = toml::from_str(&text).unwrap();
    assert_eq!(again.model, written.model);
    // A plain form is not written.
    assert!(!plan(LLAMA, &[]).to_toml().contains("residual"));
}

#[test]
fn a_form_against_its_scheme_is_refused() {
    assert_eq!(
        refusal(LLAMA, &["init.scheme=rezero", "model.residual.norm=pre"]),
        "model.residual.norm = \"pre\" is not what init.scheme = \"rezero\" is made for, which brings \
         \"none\"; remove model.residual.norm, or choose another init.scheme"
    );
    assert_eq!(
        refusal(LLAMA, &["model.residual.skip=0.0"]),
        "model.residual.skip = 0.0 must be above 0; set a positive residual.skip"
    );
    let said = refusal(LLAMA, &["optim.groups.scalar.lr_multiplier=0.1"]);
    assert!(said.contains("bring no learned numbers"), "{said}");
}

#[test]
fn learned_numbers_are_a_group_that_does_not_decay() {
    let groups = plan(LLAMA, &["init.scheme=skipinit"]).optim.groups;
    assert_eq!(groups[&Group::Scalar].weight_decay_multiplier, Some(0.0));
    assert!(!plan(LLAMA, &["init.scheme=subln"]).optim.groups.contains_key(&Group::Scalar));
}

#[test]
fn parameters_are_counted_in_every_form() {
    let count = |text: &str, sets: &[&str]| {
        let model = plan(text, sets).model;
        let units = crate::model::units::UnitMap::new(&model).units;
        let params = units.iter().flat_map(|unit| &unit.params);
        let numel: i64 = params.map(|param| param.shape.iter().product::<i64>()).sum();
        assert_eq!(model.spec().num_parameters(), numel as u64, "{sets:?}");
    };
    for text in [LLAMA, GPT2] {
        for scheme in ["gpt2", "fixup", "skipinit", "rezero", "t_fixup", "deepnorm", "subln"] {
            count(text, &[&format!("init.scheme={scheme}")]);
        }
    }
}
