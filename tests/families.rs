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
fn all_rules_and_schedules_learn() {
    let program = Program::new();
    for kind in ["constant", "linear", "wsd"] {
        learns(&program, &[&format!("schedule.kind='{kind}'")], kind);
    }
    learns(&program, &["optim.rule='lion'", "optim.lr=3e-3"], "lion");
    learns(&program, &["optim.rule='adamw_8bit'"], "adamw in 8 bits");
    learns(&program, &["optim.rule='lion_8bit'", "optim.lr=3e-3"], "lion in 8 bits");
    learns(&program, &["optim.state_dtype='bf16'"], "adamw with states in bf16");
    // A clipped step is as long as Lion's.
    learns(&program, &["optim.rule='sophia_g'", "optim.lr=3e-3"], "sophia_g");
    learns(&program, &["optim.rule='sophia_h'", "optim.lr=3e-3"], "sophia_h");
    let constant = "schedule.kind='constant'";
    learns(&program, &["optim.rule='schedule_free'", "optim.lr=2e-2", constant], "schedule_free");
    let mixed = ["optim.groups.matrix.rule='lion'", "optim.groups.matrix.lr_multiplier=0.3"];
    learns(&program, &mixed, "lion in blocks");
    learns(&program, &["schedule.kind='inverse_sqrt'"], "inverse_sqrt");
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

#[test]
fn the_token_file_of_another_trainer_is_read_as_it_is() {
    let program = Program::new();
    let config = std::fs::read_to_string(program.path("config.toml")).expect("a config");
    let config =
        config.replace("text = \"text.txt\"\ntokenizer = \"bytes\"", "tokens = \"train.bin\"");
    std::fs::write(program.path("config.toml"), config).expect("a config");
    // nanoGPT's: ids as 16-bit integers, and nothing else.
    let text = std::fs::read(program.path("text.txt")).expect("a text");
    let ids: Vec<u8> = text.iter().flat_map(|&id| u16::from(id).to_le_bytes()).collect();
    std::fs::write(program.path("train.bin"), ids).expect("a token file");
    program.train(1, &["run.dir='foreign'"]);
    let own = Program::new();
    own.train(1, &["run.dir='own'"]);
    assert_eq!(program.losses("foreign"), own.losses("own"));
}
