//! Both families train through the program in every precision, rule, schedule and recompute.

use crate::program::Program;

/// Mean loss of the last five of 20 steps, expected below the mean of the first five.
fn learns(program: &Program, overrides: &[&str], run: &str) {
    let dir = format!("run.dir='{run}'");
    program.train(1, &[overrides, &[&dir]].concat());
    let losses: Vec<f64> = program.losses(run).into_iter().map(|(_, loss)| loss).collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&losses[..5]), mean(&losses[15..]));
    assert!(last < first - 0.5, "{overrides:?}: from {first} to {last}");
}

#[test]
fn both_families_learn_in_every_precision() {
    for family in ["llama", "gpt2"] {
        let program = Program::new();
        if family == "gpt2" {
            program.use_gpt2();
        }
        for (precision, recompute) in [("bf16", "block"), ("fp32", "elementwise"), ("fp64", "none")]
        {
            let precision_key = format!("precision='{precision}'");
            let recompute_key = format!("memory.recompute='{recompute}'");
            learns(&program, &[&precision_key, &recompute_key], precision);
        }
    }
}

#[test]
fn both_rules_and_all_schedules_learn() {
    let program = Program::new();
    for kind in ["constant", "linear", "wsd"] {
        learns(&program, &[&format!("schedule.kind='{kind}'")], kind);
    }
    learns(&program, &["optim.rule='lion'", "optim.lr=3e-3"], "lion");
}

#[test]
fn precisions_agree_on_the_first_loss() {
    // One forward in bf16 differs from f64 by its roundings of 2^-9, averaged over many tokens.
    const NEAR: f64 = 1e-3;
    let program = Program::new();
    let first = |precision: &str| {
        let dir = format!("run.dir='{precision}'");
        program.train(1, &[&format!("precision='{precision}'"), &dir, "run.steps=3"]);
        program.losses(precision)[0].1
    };
    let exact = first("fp64");
    assert!((first("fp32") - exact).abs() / exact < 1e-6);
    assert!((first("bf16") - exact).abs() / exact < NEAR);
}
