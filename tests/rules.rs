//! Every element-wise rule, the batch ramp, and schedules by phases, through the program.

use std::fs;

use grove::checkpoint::{Checkpoint, TensorFile};
use half::bf16;

use crate::program::{Program, stdout};

/// Rules with what they need: all that the trainer offers for every parameter, a mix, and a ramp.
const RULES: [&[&str]; 9] = [
    &["optim.rule=adamw"],
    &["optim.rule=lion"],
    &["optim.rule=adamw_8bit"],
    &["optim.rule=lion_8bit"],
    &["optim.rule=sophia_g", "optim.hessian_every=2"],
    &["optim.rule=sophia_h", "optim.hessian_every=2"],
    &["optim.rule=schedule_free", "schedule.kind=constant"],
    &["optim.groups.matrix.rule=schedule_free", "optim.groups.norm.rule=lion"],
    &["batch.ramp_steps=3", "batch.ramp_from=4", "schedule.by=tokens"],
];

/// Micro-batches of a step: 2, 3 and 4 ranks do not share them evenly.
const COMMON: [&str; 5] = [
    "batch.micro_batches=7",
    "parallel.keep_gathered_numel=0",
    "eval.every=0",
    "run.steps=3",
    "checkpoint.every=0",
];

#[test]
fn every_rule_has_the_same_bits_at_every_rank_count_and_stage() {
    let program = Program::new();
    for (number, rule) in RULES.iter().enumerate() {
        let mut expected = None;
        for ranks in 1..=4 {
            for zero in 0..=3 {
                let dir = format!("{number} of {ranks} at {zero}");
                let run = [format!("run.dir='{dir}'"), format!("parallel.zero={zero}")];
                let run: Vec<&str> = run.iter().map(String::as_str).collect();
                program.train_in_threads(ranks, &[&run[..], &COMMON, *rule].concat());
                let checkpoint = program.path(&format!("{dir}/checkpoints/step-00000003"));
                let model = fs::read(checkpoint.join("model.safetensors")).expect("a model");
                let found = (program.hash(&dir, 3), model);
                let expected = expected.get_or_insert_with(|| found.clone());
                assert!(&found == expected, "{rule:?} on {ranks} ranks at stage {zero}");
            }
        }
    }
}

#[test]
fn every_rule_resumes_exactly() {
    let program = Program::new();
    for (number, rule) in RULES.iter().enumerate().skip(4) {
        let train = |dir: &str, ranks: usize, more: &[&str]| {
            let dir = format!("run.dir='{dir}'");
            // Schedule-free's masters lie apart in fp32 alone.
            let precision = if number == 6 { "precision=fp32" } else { "precision=bf16" };
            let common = [&dir, "run.steps=8", "checkpoint.every=4", "eval.every=2", precision];
            program.train_in_threads(ranks, &[&common[..], *rule, more].concat());
        };
        let (whole, part) = (format!("{number} whole"), format!("{number} part"));
        train(&whole, 1, &[]);
        train(&part, 2, &["parallel.zero=2"]);
        let last = program.path(&format!("{part}/checkpoints/step-00000008"));
        fs::remove_dir_all(last).expect("a checkpoint");
        train(&part, 3, &["checkpoint.resume=true", "parallel.zero=3"]);
        assert_eq!(program.hash(&part, 8), program.hash(&whole, 8), "{rule:?}");
        assert_eq!(program.losses(&part), program.losses(&whole), "{rule:?}");
    }
}

/// The f32 values of a tensor.
fn values(file: &TensorFile, name: &str) -> Vec<f32> {
    let bytes = file.get(name).expect("a tensor").bytes;
    bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

#[test]
fn a_schedule_free_checkpoint_holds_the_average_and_both_points() {
    // One multiplication and two sums in f32.
    const ROUNDED: f32 = 1e-6;
    const NAME: &str = "model.layers.0.self_attn.o_proj.weight";
    let program = Program::new();
    let rule = ["optim.rule=schedule_free", "schedule.kind=constant", "optim.lr=2e-2"];
    for (precision, zero) in [("fp32", 0), ("fp32", 3), ("bf16", 3)] {
        let dir = format!("{precision} at {zero}");
        let run = [
            format!("run.dir='{dir}'"),
            format!("precision={precision}"),
            format!("parallel.zero={zero}"),
            "parallel.keep_gathered_numel=0".to_owned(),
        ];
        let run: Vec<&str> = run.iter().map(String::as_str).collect();
        program.train_in_threads(2, &[&run[..], &rule].concat());
        let folder = program.path(&format!("{dir}/checkpoints/step-00000020"));
        let checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
        let y = values(checkpoint.masters(), NAME);
        let z = values(checkpoint.optimizer(), &format!("z/{NAME}"));
        let stored = checkpoint.model().get(NAME).expect("a tensor").bytes;
        let mut moved = 0;
        for (index, (&y, &z)) in y.iter().zip(&z).enumerate() {
            let expected = y + (1.0 - 1.0 / 0.9) * (z - y);
            let (found, near) = match precision {
                "bf16" => {
                    let two = [stored[2 * index], stored[2 * index + 1]];
                    (bf16::from_le_bytes(two).to_f32(), expected.abs() / 250.0 + ROUNDED)
                }
                _ => {
                    let four: [u8; 4] = std::array::from_fn(|i| stored[4 * index + i]);
                    (f32::from_le_bytes(four), ROUNDED)
                }
            };
            assert!((found - expected).abs() <= near, "{dir}, {index}: {found}, not {expected}");
            moved += usize::from((expected - y).abs() > 1e-3);
        }
        assert!(moved > 100, "{dir}: the average is another point than training's");
        // The evaluation of the run is that of the model it keeps.
        if precision == "fp32" && zero == 0 {
            let text =
                fs::read_to_string(program.path(&dir).join("metrics.jsonl")).expect("metrics");
            let last = text.lines().rfind(|line| line.contains("\"eval\""));
            let record: serde_json::Value =
                serde_json::from_str(last.expect("an evaluation")).expect("JSON");
            let loss = record["loss"].as_f64().expect("a loss");
            program.succeed(&["tokenize", "text.txt", "all.tokens"]);
            let model = folder.display().to_string();
            let output = program.command(&["eval", &model, "all.tokens"]).output().expect("grove");
            let said = stdout(&output);
            let whole: f64 = said.split("loss ").nth(1).expect("a loss")[..7].parse().expect("it");
            // Another part of the same text.
            assert!((whole - loss).abs() < 0.2, "{whole} against {loss}");
        }
    }
}

#[test]
fn another_rule_is_refused_with_both_names_or_starts_anew() {
    let program = Program::new();
    program.train(1, &["run.steps=10"]);
    let other = ["optim.rule=lion", "optim.lr=1e-3", "run.steps=10"];
    let mut arguments = vec!["train", "config.toml", "--resume"];
    other.iter().for_each(|over| arguments.extend(["--set", over]));
    let said = program.fail(&arguments);
    assert!(said.contains("optim.rule: \"adamw\" -> \"lion\""), "{said}");
    assert!(said.contains("optim.on_change = \"reset\""), "{said}");
    let masters = program.hash("run", 10);
    arguments.extend(["--set", "optim.on_change=reset"]);
    program.succeed(&arguments);
    assert_eq!(program.hash("run", 10), masters, "nothing was left to do");
    // With steps left, it goes on from the same weights; a schedule by steps needs a phase for that.
    let longer = ["run.steps=14", "schedule.from_step=10", "schedule.mode=fresh"];
    longer.iter().for_each(|over| arguments.extend(["--set", over]));
    program.succeed(&arguments);
    let losses = program.losses("run");
    assert_eq!(losses.len(), 14);
    assert!(losses[10].1 < losses[0].1 - 0.5, "it starts from trained weights: {losses:?}");
    let checkpoint = program.path("run/checkpoints/step-00000014");
    let checkpoint = Checkpoint::open(&checkpoint).expect("a checkpoint");
    let kept = |kind: &str| {
        let prefix = format!("{kind}/");
        checkpoint.optimizer().tensors().any(|view| view.spec.name.starts_with(&prefix))
    };
    assert!(kept("exp_avg") && !kept("exp_avg_sq"), "Lion's state alone");
}

#[test]
fn another_rule_goes_on_from_the_average() {
    const NAME: &str = "model.layers.0.self_attn.o_proj.weight";
    let program = Program::new();
    let short = ["precision=fp32", "optim.weight_decay=0", "checkpoint.keep_last=9"];
    let first = ["optim.rule=schedule_free", "optim.lr=2e-2", "schedule.kind=constant"];
    program.train(1, &[&short[..], &first, &["run.steps=10"]].concat());
    let open = |step: u64| {
        let folder = program.path(&format!("run/checkpoints/step-{step:08}"));
        Checkpoint::open(&folder).expect("a checkpoint")
    };
    let average = values(open(10).model(), NAME);
    let masters = values(open(10).masters(), NAME);
    // The next step takes 1e-6 at most.
    let next = ["schedule.kind=constant", "optim.lr=1e-6", "optim.on_change=reset"];
    let next = [&next[..], &["run.steps=11", "checkpoint.resume=true"]].concat();
    program.train(1, &[&short[..], &next].concat());
    let moved = values(open(11).masters(), NAME);
    let far =
        |from: &[f32]| moved.iter().zip(from).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    assert!(far(&average) < 1e-4 && far(&masters) > 1e-3, "{} {}", far(&average), far(&masters));
}

#[test]
fn a_ramp_takes_the_data_in_order_and_counts_its_tokens() {
    let program = Program::new();
    let ramp = ["batch.ramp_steps=4", "batch.ramp_from=1", "batch.micro_batches=4"];
    program.train(1, &[&ramp[..], &["run.dir='ramp'", "run.steps=6"]].concat());
    let tokens: Vec<u64> = program
        .step_records("ramp")
        .iter()
        .map(|record| record["num_tokens"].as_u64().expect("tokens"))
        .collect();
    // 1, 1, 2, 3, 4, 4 micro-batches of 32 tokens; the records count from the start.
    assert_eq!(tokens, [32, 64, 128, 224, 352, 480]);
    let text = fs::read_to_string(program.path("ramp/plan.toml")).expect("a plan");
    assert!(text.contains("total_tokens = 480"), "{text}");
    let arguments = ["train", "config.toml", "--set", "batch.ramp_steps=4", "--set"];
    let output = program.mpirun(2, &[&arguments[..], &["batch.ramp_from=1"]].concat()).output();
    let said = String::from_utf8_lossy(&output.expect("mpirun starts").stderr).into_owned();
    assert!(said.contains("batch.ramp_from = 1 is fewer than the 2 ranks"), "{said}");
}

#[test]
fn what_does_not_fit_together_is_named() {
    let program = Program::new();
    for (overrides, expected) in [
        (&["optim.rule=sophia"][..], "did you mean \"sophia_g\"?"),
        (&["optim.groups.matrices.rule=lion"], "unknown key `optim.groups.matrices.rule`"),
        (&["optim.gamma=0.1"], "optim.rule = \"adamw\""),
        (&["optim.rule=sophia_g", "optim.gamma=0"], "optim.gamma = 0.0 must be above 0"),
        (&["optim.rule=sophia_g", "optim.hessian_every=0"], "optim.hessian_every = 0 must be"),
        (&["optim.rule=schedule_free", "optim.betas=[0,0.9]"], "must begin above 0"),
        (
            &["optim.rule=sophia_g", "optim.groups.norm.rule=sophia_h"],
            "optim.groups.norm.rule = \"sophia_h\" is a second way to estimate the curvature",
        ),
        (&["schedule.mode=fresh"], "needs schedule.from_step"),
        (&["schedule.mode=rewind", "schedule.from_step=5"], "needs schedule.rewind_to"),
        (&["schedule.from_step=20"], "schedule.from_step = 20 is not below run.steps = 20"),
        (&["schedule.rewind_to=5"], "schedule.from_step is not set"),
        (&["batch.ramp_from=2"], "batch.ramp_steps = 0"),
        (&["batch.ramp_steps=3", "batch.ramp_from=5"], "batch.ramp_from = 5 must be at least 1"),
        (&["model.parametrization=mup"], "needs model.base_hidden_size"),
        (&["model.base_hidden_size=8"], "model.parametrization = \"standard\""),
        (&["schedule.weight_decay_final_ratio=0.5"], "schedule.weight_decay = \"constant\""),
    ] {
        let mut arguments = vec!["plan", "config.toml"];
        overrides.iter().for_each(|over| arguments.extend(["--set", over]));
        let said = program.fail(&arguments);
        assert!(said.contains(expected), "{overrides:?}: {said}");
    }
}
