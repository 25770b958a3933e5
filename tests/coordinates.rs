//! muP and CompleteP: activations as large at every width, and layers that are still their own
//! derivatives.

use grove::config::{self, Plan};
use grove::coordinates::{Coordinates, coordinates};
use grove::model::compute::Compute;
use tch::{Device, Kind};

use crate::program::Program;

/// What three steps of AdamW come to at a width of 32 times `factor` and a depth of 2 times `deeper`.
fn after_steps(program: &Program, size: (usize, usize), parametrization: &str) -> Coordinates {
    let mut rows = after_each_step(program, size, parametrization, &["optim.lr=5e-3"]);
    rows.pop().expect("four rows")
}

/// The same of any rule, and before each step.
fn after_each_step(
    program: &Program,
    (factor, deeper): (usize, usize),
    parametrization: &str,
    rule: &[&str],
) -> Vec<Coordinates> {
    let sizes = [("hidden_size", 32), ("intermediate_size", 48), ("num_attention_heads", 4)];
    let mut overrides: Vec<String> =
        sizes.iter().map(|(key, size)| format!("model.{key}={}", size * factor)).collect();
    overrides.push(format!("model.num_key_value_heads={}", 2 * factor));
    overrides.push(format!("model.num_hidden_layers={}", 2 * deeper));
    overrides.extend(rule.iter().map(|key| (*key).to_owned()));
    overrides.push("schedule.kind=constant".to_owned());
    overrides.push("schedule.warmup_steps=0".to_owned());
    if parametrization != "standard" {
        overrides.push(format!("model.parametrization={parametrization}"));
        overrides.push("model.base_hidden_size=32".to_owned());
    }
    if parametrization == "complete_p" {
        overrides.push("model.base_num_hidden_layers=2".to_owned());
    }
    let plan = plan(program, &overrides);
    let rows = coordinates(&plan, Compute::new(Device::Cpu, Kind::Float, 1), 3);
    rows.expect("a run")
}

fn plan(program: &Program, overrides: &[String]) -> Plan {
    config::load(&program.path("config.toml"), overrides).expect("a plan")
}

#[test]
fn activations_are_flat_in_width_under_mup_and_not_under_the_standard() {
    let _no_graph = tch::no_grad_guard();
    tch::set_num_threads(1);
    let program = Program::new();
    let ratio = |parametrization: &str| {
        let narrow = after_steps(&program, (1, 1), parametrization).change;
        let wide = after_steps(&program, (8, 1), parametrization).change;
        eprintln!("{parametrization}: {narrow} at 32, {wide} at 256");
        wide / narrow
    };
    let (standard, mup) = (ratio("standard"), ratio("mup"));
    assert!(standard > 3.0, "the standard's logits change {standard} times as much");
    assert!((0.4..2.0).contains(&mup), "muP's logits change {mup} times as much");
}

/// Only the matrices of blocks learn, so that nothing else hides what their steps do: how far the
/// loss falls. (Logits of a fixed head change by a random part too, which falls with the width.)
#[test]
fn orthogonal_steps_move_a_wide_model_as_a_narrow_one_under_mup() {
    let _no_graph = tch::no_grad_guard();
    tch::set_num_threads(1);
    let program = Program::new();
    let still = ["embedding", "norm", "head"];
    let still = still.map(|group| format!("optim.groups.{group}.lr_multiplier=0"));
    let ratio = |scaling: &str| {
        let lr = if scaling == "original" { "optim.lr=0.05" } else { "optim.lr=0.02" };
        let scaling = format!("optim.scaling='{scaling}'");
        let rule = ["optim.rule='muon'", &scaling, lr, "optim.weight_decay=0"];
        let rule = [&rule[..], &still.each_ref().map(String::as_str)].concat();
        let fall = |factor| {
            let rows = after_each_step(&program, (factor, 1), "mup", &rule);
            rows[0].loss - rows[3].loss
        };
        let (narrow, wide) = (fall(1), fall(8));
        eprintln!("{scaling}: the loss falls by {narrow} at 32, {wide} at 256");
        wide / narrow
    };
    for scaling in ["original", "match_rms_adamw"] {
        let mup = ratio(scaling);
        assert!((0.67..2.0).contains(&mup), "{scaling}: the loss falls {mup} times as far");
    }
}

#[test]
fn activations_are_flat_in_depth_under_complete_p_and_not_under_mup() {
    let _no_graph = tch::no_grad_guard();
    tch::set_num_threads(1);
    let program = Program::new();
    // The residual stream behind the last block: the final norm hides its size from the logits.
    let stream = |deeper: usize, parametrization: &str| {
        let rows = after_steps(&program, (1, deeper), parametrization);
        *rows.stream.last().expect("a size for each block")
    };
    let ratio = |parametrization: &str| {
        let (shallow, deep) = (stream(1, parametrization), stream(16, parametrization));
        eprintln!("{parametrization}: {shallow} at 2 blocks, {deep} at 32");
        deep / shallow
    };
    let (mup, complete) = (ratio("mup"), ratio("complete_p"));
    assert!((0.5..2.0).contains(&complete), "CompleteP's stream is {complete} times as large");
    assert!(mup > 3.0, "muP's stream is {mup} times as large");
}

#[test]
fn at_the_size_of_its_base_a_parametrization_is_the_standard_one() {
    let program = Program::new();
    let base = ["model.parametrization=complete_p", "model.base_hidden_size=32"];
    let base = [&base[..], &["model.base_num_hidden_layers=2", "run.dir='complete'"]].concat();
    program.train(1, &[&base[..], &["run.steps=3"]].concat());
    program.train(1, &["run.steps=3", "run.dir='standard'"]);
    assert_eq!(program.losses("complete"), program.losses("standard"));
    assert_eq!(program.hash("complete", 3), program.hash("standard", 3));
}

#[test]
fn a_scaled_model_trains_is_kept_as_a_granite_and_evaluates_as_in_its_run() {
    let program = Program::new();
    let scaled = ["model.parametrization=complete_p", "model.base_hidden_size=8"];
    let scaled =
        [&scaled[..], &["model.base_num_hidden_layers=1", "model.base_head_dim=4"]].concat();
    program.train(1, &scaled);
    let losses = program.losses("run");
    assert!(losses[19].1 < losses[0].1 - 0.5, "{losses:?}");
    let config = program.path("run/checkpoints/step-00000020/config.json");
    let config = std::fs::read_to_string(config).expect("a config");
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(config["model_type"], "granite");
    let number = |key: &str| config[key].as_f64().expect("a number");
    assert_eq!(number("logits_scaling"), 4.0);
    assert_eq!(number("residual_multiplier"), 0.5);
    assert_eq!(number("attention_multiplier"), 0.25);
    program.succeed(&["tokenize", "text.txt", "all.tokens"]);
    let said = program.succeed(&["eval", "run", "all.tokens"]);
    let whole: f64 = said.split("loss ").nth(1).expect("a loss")[..7].parse().expect("a number");
    assert!((whole - losses[19].1).abs() < 0.3, "{whole} against {}", losses[19].1);
}

#[test]
fn the_check_prints_a_table() {
    let program = Program::new();
    let said = program.succeed(&["coordcheck", "config.toml", "--widths", "32,64", "--steps", "1"]);
    let rows: Vec<&str> = said.lines().collect();
    assert_eq!(rows.len(), 2 + 4, "{said}");
    assert!(rows[5].starts_with("| 64 | 2 | 1 | "), "{said}");
    let said = program.fail(&["coordcheck", "config.toml", "--widths", "33"]);
    assert!(said.contains("--widths 33"), "{said}");
}
