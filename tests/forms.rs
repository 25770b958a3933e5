//! Residual forms of initialization schemes: against the papers' formulas in torch
//! (`scripts/fixtures_schemes.py`), against ordinary autograd, and through the program.

use grove::gradients::Round;
use grove::model::block::Recompute;
use grove::model::config::{BranchGain, ModelConfig, NormPlacement, Parametrization, ResidualForm};
use grove::pass::logits;
use tch::Kind;

use crate::fixture::{Fixture, Subject, alone, by_name, relative_error, relative_norm_error};
use crate::parity::check_plain;
use crate::program::Program;

/// f64 rounds at 1e-16 and a tiny model adds up some hundred terms; the rest is room.
const F64: f64 = 1e-10;
/// f32 rounds at 6e-8; gradients of numbers are sums over all of a tensor, which cancel.
const F32: f64 = 2e-5;
/// bf16 rounds at 2^-9 = 2e-3, and without norms nothing stops roundings from adding up.
const BF16: f64 = 4e-2;
/// The same for gradients.
const BF16_GRADIENT: f64 = 0.12;

/// Tiny models in torch: a scheme and a family each.
const NAMES: [&str; 10] = [
    "form_fixup_llama",
    "form_fixup_gpt2",
    "form_skipinit_llama",
    "form_rezero_gpt2",
    "form_rezero_llama",
    "form_t_fixup_llama",
    "form_deepnorm_gpt2",
    "form_deepnorm_llama",
    "form_subln_llama",
    "form_subln_gpt2",
];

/// The schemes with a form of their own.
const SCHEMES: [&str; 6] = ["fixup", "skipinit", "rezero", "t_fixup", "deepnorm", "subln"];

#[test]
fn forms_equal_their_papers() {
    for name in NAMES {
        let fixture = Fixture::load(name);
        let tokens = fixture.get("tokens");
        let num_targets = (tokens.size()[0] * (tokens.size()[1] - 1)) as f64;
        for (kind, tolerance) in [(Kind::Double, F64), (Kind::Float, F32)] {
            let subject = Subject::new(&fixture, kind, Recompute::None);
            let inputs = tokens.narrow(1, 0, tokens.size()[1] - 1).contiguous();
            let found = alone(&subject.state.units, |traffic| {
                logits(subject.layers(), (&inputs, None), traffic).expect("no collective, no error")
            });
            let error = relative_error(&found, fixture.get("logits"));
            assert!(error < tolerance, "{name} {kind:?}: logits are off by {error:e}");
            let loss = subject.forward_backward(tokens, Round::only()) / num_targets;
            let expected = fixture.get("loss").double_value(&[]);
            assert!((loss - expected).abs() / expected < tolerance, "{name} {kind:?}: {loss}");
            let mut worst = 0.0f64;
            for (param, grad) in by_name(&subject.state.units, |unit| &unit.grads) {
                let expected = fixture.get(&format!("grad.{param}"));
                let error = relative_error(&(grad / num_targets), expected);
                assert!(error < tolerance, "{name} {kind:?}: gradient of {param}: {error:e}");
                worst = worst.max(error);
            }
            eprintln!("{name} {kind:?}: gradients are off by {worst:.1e}");
        }
    }
}

#[test]
fn bf16_stays_near() {
    for name in NAMES {
        let fixture = Fixture::load(name);
        let subject = Subject::new(&fixture, Kind::BFloat16, Recompute::None);
        let tokens = fixture.get("tokens");
        let num_targets = (tokens.size()[0] * (tokens.size()[1] - 1)) as f64;
        let loss = subject.forward_backward(tokens, Round::only()) / num_targets;
        let expected = fixture.get("loss").double_value(&[]);
        assert!((loss - expected).abs() / expected < BF16, "{name}: {loss}, not {expected}");
        let mut worst = (0.0f64, String::new());
        for (param, grad) in by_name(&subject.state.units, |unit| &unit.grads) {
            // Numbers are sums that cancel: what is left may be all rounding.
            if grad.numel() > 1 {
                let expected = fixture.get(&format!("grad.{param}"));
                let error = relative_norm_error(&(grad / num_targets), expected);
                worst = if error > worst.0 { (error, param) } else { worst };
            }
        }
        eprintln!("{name}: the gradient of {} is off by {:.3}", worst.1, worst.0);
        assert!(worst.0 < BF16_GRADIENT, "{name}: the gradient of {} by {}", worst.1, worst.0);
    }
}

#[test]
fn recompute_changes_no_bit() {
    for name in NAMES {
        let fixture = Fixture::load(name);
        for kind in [Kind::BFloat16, Kind::Float, Kind::Double] {
            let run = |recompute| {
                let subject = Subject::new(&fixture, kind, recompute);
                let loss = subject.forward_backward(fixture.get("tokens"), Round::only());
                (loss, by_name(&subject.state.units, |unit| &unit.grads))
            };
            let (loss, grads) = run(Recompute::None);
            for recompute in [Recompute::Elementwise, Recompute::Block] {
                let (again, others) = run(recompute);
                assert_eq!(again.to_bits(), loss.to_bits(), "{name} {kind:?} {recompute:?}: loss");
                for (param, grad) in &others {
                    assert!(grads[param].equal(grad), "{name} {kind:?} {recompute:?}: {param}");
                }
            }
        }
    }
}

/// All placements with all gains, numbers and factors at once, in both families, also where
/// CompleteP has a factor on branches of its own.
#[test]
fn the_plain_model_is_the_same_function_in_every_form() {
    for name in NAMES {
        check_plain(name, &Fixture::load(name));
    }
    for name in ["form_fixup_llama", "form_fixup_gpt2"] {
        let mut config = Fixture::load(name).config;
        for norm in
            [NormPlacement::Pre, NormPlacement::Post, NormPlacement::Sub, NormPlacement::None]
        {
            for gain in [BranchGain::None, BranchGain::Branch, BranchGain::Block] {
                let form = ResidualForm { norm, gain, skip: 1.25, scalar_biases: true };
                match &mut config {
                    ModelConfig::Llama(llama) => {
                        llama.residual = form;
                        llama.parametrization = Parametrization::CompleteP;
                        llama.base_num_hidden_layers = Some(1);
                    }
                    ModelConfig::Gpt2(gpt2) => gpt2.residual = form,
                }
                check_plain(&format!("{name} {form:?}"), &Fixture::drawn(&config, 7));
            }
        }
    }
}

#[test]
fn every_scheme_learns_and_its_bits_depend_on_no_rank() {
    for scheme in SCHEMES {
        let program = Program::new();
        let key = format!("init.scheme='{scheme}'");
        program.train_in_threads(1, &[&key, "run.dir='one'"]);
        let losses: Vec<f64> = program.losses("one").into_iter().map(|(_, loss)| loss).collect();
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..5]), mean(&losses[15..]));
        eprintln!("{scheme}: from {first} to {last}");
        assert!(last < first - 0.3, "{scheme}: from {first} to {last}");
        for (ranks, zero) in [(2, 0), (4, 3)] {
            let dir = format!("of{ranks}");
            let stage = format!("parallel.zero={zero}");
            let whole = "parallel.keep_gathered_numel=0";
            program.train_in_threads(
                ranks,
                &[&key, &stage, whole, &format!("run.dir='{dir}'"), "memory.recompute='block'"],
            );
            assert_eq!(program.hash(&dir, 20), program.hash("one", 20), "{scheme}: {ranks} ranks");
        }
    }
}

#[test]
fn a_tied_head_without_a_norm_is_a_unit_without_parameters() {
    let program = Program::new();
    program.use_gpt2();
    let keys = ["init.scheme='rezero'", "precision='bf16'"];
    program.train_in_threads(1, &[&keys[..], &["run.dir='one'"]].concat());
    let losses = program.losses("one");
    assert!(losses[19].1 < losses[0].1 - 0.3, "{losses:?}");
    for (ranks, zero) in [(2, 1), (2, 3)] {
        let dir = format!("of{ranks}at{zero}");
        let stage = format!("parallel.zero={zero}");
        let whole = "parallel.keep_gathered_numel=0";
        let more = [&stage[..], whole, &format!("run.dir='{dir}'")];
        program.train_in_threads(ranks, &[&keys[..], &more].concat());
        assert_eq!(program.hash(&dir, 20), program.hash("one", 20), "{ranks} ranks at {zero}");
    }
}

#[test]
fn a_model_that_transformers_lacks_says_so_and_is_read_again() {
    let program = Program::new();
    program.train(1, &["init.scheme='rezero'"]);
    let folder = "run/checkpoints/step-00000020";
    let config = std::fs::read_to_string(program.path(folder).join("config.json"));
    let config: serde_json::Value = serde_json::from_str(&config.expect("a config")).expect("JSON");
    assert_eq!(config["model_type"], "grove");
    assert_eq!(config["grove_family"], "llama");
    assert_eq!(config["residual"]["gain"], "block");
    let plan = std::fs::read_to_string(program.path("run/plan.toml")).expect("a plan");
    assert!(plan.contains("[model.residual]\nnorm = \"none\"\ngain = \"block\""), "{plan}");
    program.succeed(&["tokenize", "text.txt", "all.tokens"]);
    let said = program.succeed(&["eval", "run", "all.tokens"]);
    let whole: f64 = said.split("loss ").nth(1).expect("a loss")[..7].parse().expect("a number");
    let last = program.losses("run")[19].1;
    assert!((whole - last).abs() < 0.3, "{whole} against {last}");
    let said = program.fail(&["export", "run", "out"]);
    assert!(said.contains("transformers has no architecture with its model.residual"), "{said}");
    // Weights alone start another run, and its form must be the same.
    program.train(1, &["init.scheme='rezero'", "init.from='run'", "run.dir='again'"]);
    assert!(program.losses("again")[0].1 < program.losses("run")[0].1 - 0.3);
    let other = ["--set", "init.from='run'", "--set", "run.dir='other'"];
    let said = program.fail(&[&["train", "config.toml"][..], &other].concat());
    assert!(said.contains("model.residual"), "{said}");
}
