//! Steps that go wrong: explained, skipped, or gone back over, the same at any number of ranks.

use std::collections::BTreeSet;

use grove::blackbox::BlackBox;
use grove::checkpoint::Checkpoint;
use grove::config::{self, Plan};
use grove::corpus::Data;
use grove_data::{TokenFile, TokenWriter};

use crate::program::Program;

/// The step, from 1, whose batch is spoiled.
const SPOILED: u64 = 16;

const STEPS: u64 = 40;

/// Spikes are looked for in short windows. The spoiled batch's gradient lies over 25 of their
/// deviations up, the noise of all others within ten.
const GUARDED: [&str; 4] =
    ["run.steps=40", "checkpoint.keep_last=9", "guard.spike_zscore=25", "guard.spike_window=8"];

/// A program whose data is a token file, with one step's batch full of bytes that no other has.
fn spoiled() -> Program {
    let program = Program::new();
    program.succeed(&["tokenize", "text.txt", "data.tokens"]);
    let path = program.path("data.tokens");
    let text = std::fs::read_to_string(program.path("config.toml")).expect("a config");
    let text = text.replace("text = \"text.txt\"", &format!("tokens = {path:?}"));
    std::fs::write(program.path("config.toml"), text).expect("a config");
    let plan = plan(&program);
    let loader = Data::open(&plan).expect("data").loader(&plan).expect("a loader");
    let file = TokenFile::open(&path).expect("a token file");
    let mut tokens = vec![0; file.num_tokens() as usize];
    file.read(0, &mut tokens).expect("its tokens");
    for index in 0..plan.batch.micro_batches {
        for row in loader.receipt(SPOILED - 1, index).expect("a receipt") {
            let piece = &row.pieces[0];
            // The first and the last token belong to neighboring rows too.
            let (start, end) = (piece.tokens.start as usize + 1, piece.tokens.end as usize - 1);
            (start..end).for_each(|place| tokens[place] = 128 + (place * 37 % 101) as u32);
        }
    }
    let mut writer = TokenWriter::create(&path, file.vocab_size()).expect("a writer");
    writer.write(&tokens).expect("room");
    writer.finish().expect("a token file");
    program
}

fn plan(program: &Program) -> Plan {
    config::load(&program.path("config.toml"), &[]).expect("a plan")
}

/// Trains with the guards and some more settings.
fn train(program: &Program, ranks: usize, run: &str, settings: &[&str]) -> String {
    let dir = format!("run.dir='{run}'");
    program.train(ranks, &[&GUARDED[..], &[dir.as_str(), "guard.max_trips=1"], settings].concat())
}

/// Forgets all checkpoints after `step`, as if the process had died right after it.
fn forget_after(program: &Program, run: &str, step: u64) {
    for later in (step + 1..=STEPS).filter(|step| step.is_multiple_of(10)) {
        let folder = program.path(&format!("{run}/checkpoints/step-{later:08}"));
        std::fs::remove_dir_all(folder).expect("a checkpoint");
    }
}

#[test]
fn a_spoiled_batch_under_rewind_ends_as_a_run_that_left_it_out_from_the_start() {
    let program = spoiled();
    train(&program, 1, "clean", &["guard.exclude_steps=[16]"]);
    let (clean, losses) = (program.hash("clean", STEPS), program.losses("clean"));
    assert!(!program.path("clean/blackbox").exists(), "nothing but the spoiled batch is a spike");
    let rewind = "guard.spike='rewind'";
    for (run, ranks, more) in [
        ("disk", 1, &["checkpoint.every=10"][..]),
        ("memory", 1, &["guard.snapshot_every=3"]),
        ("start", 1, &["checkpoint.every=0"]),
        (
            "ranks",
            2,
            &["guard.snapshot_every=4", "parallel.zero=3", "parallel.keep_gathered_numel=0"],
        ),
        ("sharded", 2, &["checkpoint.every=10", "parallel.zero=1"]),
    ] {
        let said = train(&program, ranks, run, &[&[rewind], more].concat());
        assert_eq!(program.hash(run, STEPS), clean, "{run}: {said}");
        assert_eq!(program.losses(run), losses, "{run}");
        let records = std::fs::read_to_string(program.path(run).join("metrics.jsonl"));
        let records = records.expect("metrics");
        let told = records.lines().filter(|line| line.contains("\"kind\":\"rewind\"")).count();
        assert_eq!(told, 1, "{run}: {records}");
    }
    // Of 4 bytes each: masters and two states, before anything is saved.
    let memory =
        |of: &str| program.step_records("memory")[0]["memory_bytes"][of].as_u64().expect("bytes");
    let of_state = memory("optimizer_state") / 2 * 3;
    assert!(memory("snapshot") >= of_state, "{} bytes of copies", memory("snapshot"));
    // From before the spoiled step, which it meets again, and from after it, which it must remember.
    for step in [10, 20] {
        forget_after(&program, "disk", step);
        train(&program, 1, "disk", &[rewind, "checkpoint.resume=true"]);
        assert_eq!(program.hash("disk", STEPS), clean, "resumed from {step}");
    }
}

#[test]
fn a_skipped_step_counts_without_its_update_at_any_number_of_ranks_and_over_a_resume() {
    let program = spoiled();
    for (run, ranks) in [("one", 1), ("two", 2)] {
        train(&program, ranks, run, &["guard.spike='skip'"]);
    }
    let hash = program.hash("one", STEPS);
    assert_eq!(program.hash("two", STEPS), hash);
    let skipped: Vec<u64> = program
        .step_records("one")
        .iter()
        .filter(|record| !record["skipped"].is_null())
        .map(|record| record["step"].as_u64().expect("a step"))
        .collect();
    assert_eq!(skipped, [SPOILED]);
    for step in [10, 20] {
        forget_after(&program, "two", step);
        train(&program, 1, "two", &["guard.spike='skip'", "checkpoint.resume=true"]);
        assert_eq!(program.hash("two", STEPS), hash, "resumed from {step}");
    }
}

#[test]
fn a_skipped_batch_leaves_no_trace_in_sophias_estimate() {
    let program = spoiled();
    // Estimates before steps 1, 6, 11, 16, which is the spoiled one, and so on.
    let sophia = ["optim.rule='sophia_g'", "optim.hessian_every=5", "checkpoint.keep_last=40"];
    let settings = ["guard.spike='skip'", "checkpoint.every=1"];
    train(&program, 1, "run", &[&sophia[..], &settings].concat());
    let records = program.step_records("run");
    assert!(!records[15]["skipped"].is_null(), "the spoiled batch is a spike: {}", records[15]);
    let estimate = |step: u64| {
        let folder = program.path(&format!("run/checkpoints/step-{step:08}"));
        let checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
        let of_all = checkpoint.optimizer().tensors();
        let of_all = of_all.filter(|tensor| tensor.spec.name.starts_with("hessian"));
        of_all.flat_map(|tensor| tensor.bytes.to_vec()).collect::<Vec<u8>>()
    };
    assert!(estimate(15).iter().any(|&byte| byte != 0), "there is an estimate");
    assert!(estimate(16) == estimate(15), "the skipped step is in the estimate");
    assert!(estimate(21) != estimate(15), "a later one is not");

    // What the estimates cost is counted: as much as another pass over their steps.
    let flops = |index: usize| records[index]["total_flops"].as_f64().expect("a number");
    for index in 1..records.len() {
        let passes = (flops(index) - flops(index - 1)) / (flops(1) - flops(0));
        let expected = if index % 5 == 0 { 2.0 } else { 1.0 };
        assert!((passes - expected).abs() < 1e-9, "step {}: {passes} passes", index + 1);
    }
}

#[test]
fn a_spike_that_stops_the_run_leaves_the_batch_the_trainer_saw() {
    let program = spoiled();
    let sets: Vec<&str> = GUARDED.iter().flat_map(|over| ["--set", over]).collect();
    let stop = [&["train", "config.toml", "--set", "guard.spike='stop'"], &sets[..]].concat();
    let said = program.fail(&stop);
    let folder = program.path("run/blackbox/step-00000016");
    assert!(said.contains("step 16 has a gradient norm far above those before it"), "{said}");
    assert!(said.contains("run/blackbox/step-00000016"), "{said}");
    assert!(said.contains("guard.exclude_steps = [16]"), "{said}");

    let black_box = BlackBox::open(&folder).expect("a black box");
    let plan = plan(&program);
    let loader = Data::open(&plan).expect("data").loader(&plan).expect("a loader");
    let mut files = BTreeSet::new();
    for index in 0..black_box.num_micro_batches() {
        let seen = loader.micro_batch(SPOILED - 1, index as u64).expect("a batch");
        assert_eq!(black_box.micro_batch(index).expect("a batch"), seen);
        let rows = &black_box.report.micro_batches[index].rows;
        files.extend(rows.iter().flat_map(|row| row.pieces.iter().map(|piece| piece.file.clone())));
    }
    assert_eq!(files, BTreeSet::from([program.path("data.tokens")]));

    // With the very weights that it had, the same loss and norm come out again.
    let told = program.succeed(&["replay", folder.to_str().expect("UTF-8"), "--advance"]);
    let line = |start: &str| {
        let line = told.lines().find(|line| line.starts_with(start)).expect("a line").to_owned();
        line.split_once("): ").or(line.split_once("it: ")).expect("numbers").1.to_owned()
    };
    let (then, now) =
        (numbers(&line("step 16")), numbers(&line("again with the weights of step 15")));
    for (then, now) in then.into_iter().zip(now) {
        // Sums in another order.
        assert!((then - now).abs() < 1e-9 * then.abs(), "{told}");
    }
    assert!(told.contains("all finite"), "{told}");
}

/// The numbers in `loss 1, norm 2`.
fn numbers(text: &str) -> Vec<f64> {
    text.split(", ")
        .map(|it| it.rsplit(' ').next().expect("a word").parse().expect("a number"))
        .collect()
}

#[test]
fn a_run_that_diverges_is_explained_and_replayed() {
    let program = Program::new();
    let diverging =
        ["--set", "optim.lr=1e30", "--set", "optim.clip_norm=0", "--set", "optim.weight_decay=0"];
    let said = program.fail(&[&["train", "config.toml"], &diverging[..]].concat());
    assert!(said.contains("has a loss or gradient that is not finite"), "{said}");
    let place = said.find("run/blackbox/step-").expect("the folder is named");
    let folder: String = said[place..].chars().take_while(|&c| c != ',').collect();
    let report = BlackBox::open(&program.path(&folder)).expect("a black box").report;
    assert!(report.first_bad_micro_batch.is_some() || report.first_bad_parameter.is_some());
    let told = program.succeed(&["replay", &folder, "--advance"]);
    assert!(told.contains("first not finite: micro-batch 0"), "{told}");

    // Nothing is left of such weights: skipping does not help, and says so in the end.
    let skip =
        ["--set", "guard.non_finite=skip", "--set", "guard.max_trips=3", "--set", "run.dir='b'"];
    let said = program.fail(&[&["train", "config.toml"], &diverging[..], &skip].concat());
    assert!(said.contains("as at 3 steps before it (guard.max_trips)"), "{said}");
}

#[test]
fn data_that_was_trained_on_cannot_be_left_out_any_more() {
    let program = Program::new();
    program.train(1, &["run.steps=20"]);
    let resume = ["train", "config.toml", "--resume", "--set", "guard.exclude_steps=[7]"];
    let said = program.fail(&resume);
    assert!(said.contains("guard.exclude_steps has 7") && said.contains("step 20"), "{said}");
}
