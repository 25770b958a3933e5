//! Growth through its three doors: `grove grow`, `[init]`, and stages in the midst of a run.

use serde_json::Value;

use crate::program::Program;

/// A deeper model after 6 steps, a wider one after 12; a third of the wide residual stream is
/// residue, which takes another epsilon.
const STAGES: &str = r#"
[[growth]]
at_step = 6
[growth.model]
num_hidden_layers = 3
[[growth]]
at_step = 12
schedule = "rewind"
[growth.model]
hidden_size = 48
num_attention_heads = 6
num_key_value_heads = 3
intermediate_size = 64
rms_norm_eps = 6.666666666666667e-6
"#;

/// The wide model of the stages, as overrides.
const WIDE: [&str; 6] = [
    "model.hidden_size=48",
    "model.head_dim=8",
    "model.num_attention_heads=6",
    "model.num_key_value_heads=3",
    "model.intermediate_size=64",
    "model.rms_norm_eps=6.666666666666667e-6",
];

fn with_stages(stages: &str) -> Program {
    let program = Program::new();
    let config = std::fs::read_to_string(program.path("config.toml")).expect("a config");
    std::fs::write(program.path("config.toml"), config + stages).expect("a config");
    program
}

fn json(program: &Program, path: &str) -> Value {
    let text = std::fs::read_to_string(program.path(path)).expect("a JSON file");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn a_run_that_grows_has_the_same_bits_at_every_rank_count_and_stage() {
    let program = with_stages(STAGES);
    let mut expected = None;
    let sharding = [(1, 0), (2, 0), (4, 0), (1, 3), (2, 3), (4, 3)];
    for (precision, ways) in [("fp32", &sharding[..]), ("bf16", &sharding[..2])] {
        expected = expected.filter(|_| precision == "fp32");
        for &(ranks, zero) in ways {
            let run = format!("{precision}-{ranks}-{zero}");
            let overrides = [
                format!("run.dir='{run}'"),
                format!("parallel.zero={zero}"),
                format!("precision={precision}"),
                "parallel.keep_gathered_numel=0".to_owned(),
                "checkpoint.keep_last=9".to_owned(),
            ];
            let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
            program.train_in_threads(ranks, &overrides);
            let hash = program.hash(&run, 20);
            let expected = expected.get_or_insert_with(|| hash.clone());
            assert_eq!(&hash, expected, "{precision} on {ranks} ranks at stage {zero}");
        }
    }
}

#[test]
fn a_run_resumes_from_before_within_and_after_its_stages() {
    let program = with_stages(STAGES);
    let train = |overrides: &[&str]| {
        program.train_in_threads(
            1,
            &[&["checkpoint.keep_last=9", "checkpoint.every=3"], overrides].concat(),
        );
    };
    train(&[]);
    let whole = program.hash("run", 20);
    // Each pass removes what the last one has left, down to an earlier step.
    for first_gone in [18, 15, 12, 9, 6] {
        for step in (first_gone..=20).filter(|step| step % 3 == 0 || *step == 20) {
            let folder = program.path(&format!("run/checkpoints/step-{step:08}"));
            std::fs::remove_dir_all(folder).expect("a checkpoint");
        }
        train(&["checkpoint.resume=true"]);
        assert_eq!(program.hash("run", 20), whole, "resumed before step {first_gone}");
    }
}

#[test]
fn costs_and_counts_go_on_over_stages() {
    let program = with_stages(STAGES);
    program.train_in_threads(1, &["checkpoint.keep_last=9"]);
    let records = program.step_records("run");
    let number = |index: usize, key: &str| records[index][key].as_f64().expect("a number");
    assert_eq!(records.len(), 20);
    for stage in [6, 12] {
        let certificate = json(&program, &format!("run/growth-{stage:08}.json"));
        assert_eq!(certificate["is_exact"], true, "{certificate}");
        assert!(certificate["tokens"].as_str().expect("words").contains("validation"));
    }
    for index in 1..20 {
        assert_eq!(number(index, "num_tokens"), number(0, "num_tokens") * (index + 1) as f64);
    }
    // What a step costs changes with the model, and only there.
    let cost = |index: usize| number(index, "total_flops") - number(index - 1, "total_flops");
    for index in 2..20 {
        let grows = index == 6 || index == 12;
        assert_eq!(cost(index) > cost(index - 1), grows, "step {}", index + 1);
    }
    // The rewound schedule begins again at the end of its warm-up.
    assert_eq!(number(12, "lr"), 1e-2);
    assert!(number(11, "lr") < 9e-3);
    let run = json(&program, "run/checkpoints/step-00000020/grove/run.json");
    let count = |name: &str| run["parameter_steps"][name].as_u64().expect("a count");
    assert_eq!(count("model.embed_tokens.weight"), 20);
    // Of three blocks the second was inserted at step 6.
    let counts = [0, 1, 2].map(|l| count(&format!("model.layers.{l}.mlp.up_proj.weight")));
    assert_eq!(counts, [20, 14, 20]);
}

#[test]
fn a_grown_checkpoint_is_certified_and_taken_up_with_its_optimizer() {
    let program = Program::new();
    program.succeed(&["train", "config.toml", "--set", "run.steps=10", "--set", "run.dir=small"]);
    let sets: Vec<&str> = WIDE.iter().flat_map(|over| ["--set", over]).collect();
    let grow = [&["grow", "small", "--config", "config.toml"][..], &sets].concat();
    let said = program.succeed(&[&grow[..], &["--explain"]].concat());
    assert!(said.contains("model.layers.1.mlp.down_proj.weight [48, 64]: rows 32 -> 48"), "{said}");
    let said = program.succeed(&[&grow[..], &["--out", "grown"]].concat());
    assert!(said.contains("the function is kept"), "{said}");
    let certificate = json(&program, "grown/growth.json");
    assert_eq!(certificate["is_exact"], true);
    assert_eq!(certificate["source_hash"], program.hash("small", 10));
    assert_eq!(certificate["grown_hash"], program.hash("grown", 0));
    // From the grown folder, as it is: weights only, or with all that belongs to them.
    let from = [&WIDE[..], &["init.from=grown", "run.steps=3", "eval.every=0"]].concat();
    let with = |more: &[&'static str]| [&from[..], more].concat();
    program.train(1, &with(&["run.dir=weights"]));
    program.train(1, &with(&["run.dir=all", "init.growth.moments=map"]));
    for (run, steps) in [("weights", 3), ("all", 13)] {
        let run = json(&program, &format!("{run}/checkpoints/step-00000003/grove/run.json"));
        assert_eq!(run["parameter_steps"]["model.norm.weight"], steps);
    }
    // The small model, grown as the run starts: the same as by way of the folder.
    let direct = [&WIDE[..], &["init.from=small", "init.growth.moments=map"]].concat();
    let direct = [&direct[..], &["run.dir=direct", "run.steps=3", "eval.every=0"]].concat();
    program.train(1, &direct);
    assert_eq!(program.hash("direct", 3), program.hash("all", 3));
    // An operator that does not keep the function says so.
    let stack = ["--set", "init.growth.depth=stack", "--set", "model.num_hidden_layers=4"];
    let said = program.succeed(&[&grow[..], &stack, &["--out", "stacked"]].concat());
    assert!(said.contains("this is the jump"), "{said}");
    assert_eq!(json(&program, "stacked/growth.json")["is_exact"], false);
}

#[test]
fn what_cannot_be_grown_is_refused_before_a_step() {
    let program = with_stages(
        "[[growth]]\nat_step = 25\nmodel.num_hidden_layers = 1\n[[growth]]\nat_step = 25\n",
    );
    let text = program.fail(&["train", "config.toml"]);
    for part in [
        "growth[0].at_step = 25 is not before the last of run.steps = 20",
        "growth[1].at_step = 25 does not come after the stage before it, at step 25",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    let text = program.fail(&["train", "config.toml", "--set", "run.steps=30"]);
    assert!(text.contains("growth[1].at_step = 25 does not come after"), "{text}");

    let program = with_stages("[[growth]]\nat_step = 5\nmodel.num_hidden_layers = 1\n");
    let text = program.fail(&["train", "config.toml"]);
    assert!(text.contains("model.num_hidden_layers = 1 is below the source's 2"), "{text}");

    let program = with_stages("[[growth]]\nat_step = \"5\"\ndpeth = \"stack\"\n");
    let text = program.fail(&["plan", "config.toml"]);
    assert!(text.contains("unknown key `growth[0].dpeth`"), "{text}");
    assert!(text.contains("growth[0].at_step` in config.toml: expected an integer"), "{text}");
}

#[test]
fn a_source_that_does_not_fit_is_refused_with_all_reasons() {
    let program = Program::new();
    program.succeed(&["train", "config.toml", "--set", "run.steps=2", "--set", "run.dir=small"]);
    let small = ["--set", "init.from=small", "--set", "run.dir=other"];
    let wider =
        ["train", "config.toml", "--set", "model.hidden_size=48", "--set", "model.head_dim=8"];
    let text = program.fail(&[&wider[..], &small].concat());
    assert!(text.contains("model.hidden_size: 32, here 48"), "{text}");
    let growth = ["--set", "init.growth.width=equal", "--set", "model.num_hidden_layers=1"];
    let text = program.fail(&[&wider[..], &small, &growth].concat());
    assert!(text.contains("model.num_hidden_layers = 1 is below the source's 2"), "{text}");
    let text = program.fail(&["train", "config.toml", "--set", "init.growth.width=equal"]);
    assert!(text.contains("has no effect because init.from is not set"), "{text}");
    let lion = ["--set", "optim.rule=lion", "--set", "init.growth.width=equal"];
    program.succeed(&[&["train", "config.toml"][..], &small, &lion].concat());
    let adam_from_lion = ["--set", "init.from=other", "--set", "run.dir=third"];
    let map = ["--set", "init.growth.moments=map"];
    let text = program.fail(&[&["train", "config.toml"][..], &adam_from_lion, &map].concat());
    assert!(
        text.contains("has optimizer state exp_avg, but optim.rule needs exp_avg, exp_avg_sq"),
        "{text}"
    );
}

#[test]
fn the_certificate_of_a_learned_map_says_what_learning_was_worth() {
    let program = Program::new();
    program.succeed(&["train", "config.toml", "--set", "run.steps=20", "--set", "run.dir=small"]);
    let learned = [
        "model.num_hidden_layers=4",
        "init.growth.depth=stack",
        "init.growth.width=equal",
        "init.growth.learn_steps=30",
        "optim.lr=1e-3",
    ];
    let sets: Vec<&str> = WIDE.iter().chain(&learned).flat_map(|over| ["--set", over]).collect();
    let grow = ["grow", "small", "--config", "config.toml", "--out", "grown"];
    let said = program.succeed(&[&grow[..], &sets].concat());
    let certificate = json(&program, "grown/growth.json");
    let map = &certificate["learned"];
    assert_eq!((&map["steps"], &map["num_tokens"]), (&30.into(), &(30 * 2 * 16).into()));
    let number = |value: &serde_json::Value| value.as_f64().expect("a loss");
    let (before, after) = (number(&map["unlearned_loss"]), &certificate["measured"][0]);
    assert!(number(&after["grown_loss"]) < before, "{said}");
    assert!(said.contains(&format!("the map: loss {before:.6} by the operators alone")), "{said}");
    // Where nothing is learned there is nothing to tell.
    let plain = [&grow[..5], &["plain"]].concat();
    let sets: Vec<&str> = WIDE.iter().flat_map(|over| ["--set", over]).collect();
    program.succeed(&[&plain[..], &sets].concat());
    assert!(json(&program, "plain/growth.json").get("learned").is_none());
}
