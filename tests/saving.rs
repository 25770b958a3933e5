//! Checkpoints that all ranks write in the background, and the folder they are written to.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use grove::beacon::LastSeen;
use grove::checkpoint::Checkpoint;
use serde_json::Value;

use crate::program::{Program, send, wait_for, wait_within};

/// What the program promises to say when it was asked to stop and has saved.
const INTERRUPTED: i32 = 75;

/// The sha256 of each file of tensors of a run's checkpoint, by its manifest.
fn tensor_hashes(program: &Program, run: &str, step: u64) -> BTreeMap<String, String> {
    let path = format!("{run}/checkpoints/step-{step:08}/manifest.json");
    let manifest: Value =
        serde_json::from_slice(&fs::read(program.path(&path)).expect("a manifest")).expect("JSON");
    let files = manifest["files"].as_object().expect("files").iter();
    let tensors = files.filter(|(name, _)| name.contains("safetensors"));
    tensors.map(|(name, file)| (name.clone(), file["sha256"].to_string())).collect()
}

/// Saved by any ranks at any stage a checkpoint has the same bytes, so that whoever loads one of them
/// loads them all.
#[test]
fn any_ranks_at_any_stage_save_the_same_bytes_and_load_them() {
    const MODEL: [&str; 4] = [
        "model.hidden_size=64",
        "model.intermediate_size=176",
        "batch.micro_batches=5",
        "parallel.keep_gathered_numel=0",
    ];
    for rule in [&["precision=fp32"][..], &["precision=bf16", "optim.rule=adamw_8bit"]] {
        let program = Program::new();
        let mut expected = None;
        let every_way = || [1, 2, 4].into_iter().flat_map(|ranks| (0..4).map(move |z| (ranks, z)));
        let train = |ranks: usize, zero: usize, dir: &str, more: &[&str]| {
            let (dir, stage) = (format!("run.dir='{dir}'"), format!("parallel.zero={zero}"));
            let way = [dir.as_str(), &stage, "eval.every=0", "run.steps=8", "checkpoint.every=4"];
            program.train_in_threads(ranks, &[&way[..], &MODEL, rule, more].concat());
        };
        for (ranks, zero) in every_way() {
            let run = format!("by {ranks} at {zero}");
            train(ranks, zero, &run, &[]);
            for step in [4, 8] {
                let found = tensor_hashes(&program, &run, step);
                let expected = expected.get_or_insert_with(BTreeMap::new);
                assert_eq!(expected.entry(step).or_insert(found.clone()), &found, "{run}");
            }
        }
        let expected = expected.expect("runs");
        for (ranks, zero) in every_way() {
            let saved = program.path("by 1 at 0/checkpoints/step-00000004");
            let run = format!("from there by {ranks} at {zero}");
            let copy = program.path(&format!("{run}/checkpoints/step-00000004"));
            copy_folder(&saved, &copy);
            train(ranks, zero, &run, &["checkpoint.resume=true"]);
            assert_eq!(tensor_hashes(&program, &run, 8), expected[&8], "{run}");
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}

#[test]
fn a_run_keeps_what_it_should_and_points_to_the_newest() {
    let program = Program::new();
    let keep = ["checkpoint.every=2", "checkpoint.keep_last=1", "checkpoint.keep_every=8"];
    program.train(2, &keep);
    let mut left: Vec<String> = fs::read_dir(program.path("run/checkpoints"))
        .expect("checkpoints")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    left.sort();
    assert_eq!(left, ["step-00000008", "step-00000016", "step-00000020"]);
    let latest = fs::read_link(program.path("run/latest")).expect("a link");
    assert_eq!(latest, Path::new("checkpoints/step-00000020"));
    // A save's copies are counted, and the time they take is told.
    let records = program.step_records("run");
    let last = records.last().expect("a step");
    assert!(last["memory_bytes"]["snapshot"].as_u64().expect("bytes") > 100_000, "{last}");
    assert!(records.iter().any(|record| record["save_seconds"].as_f64() > Some(0.0)));
}

#[test]
fn a_model_in_several_files_is_a_model() {
    let program = Program::new();
    let small = ["checkpoint.max_shard_bytes=20000", "data.tokenizer=bytes"];
    program.train(2, &small);
    program.train(1, &["run.dir='one'"]);
    let folder = program.path("run/checkpoints/step-00000020");
    assert!(folder.join("model.safetensors.index.json").exists());
    assert!(!folder.join("model.safetensors").exists());
    let (several, one) = (
        Checkpoint::open(&folder).expect("a checkpoint"),
        Checkpoint::open(&program.path("one/latest")).expect("a checkpoint"),
    );
    for (several, one) in several.model().tensors().zip(one.model().tensors()) {
        assert_eq!((several.spec, several.bytes), (one.spec, one.bytes));
    }
    let said = |model: &str| program.succeed(&["eval", model, "run/data.tokens"]);
    assert_eq!(said("run"), said("one"));
}

#[test]
fn a_run_that_another_job_writes_is_refused() {
    let program = Program::new();
    let long = ["train", "config.toml", "--set", "run.steps=1000000"];
    let first = program.command(&long).spawn().expect("the program starts");
    wait_for(&program.path("run/checkpoints/step-00000010"));
    let said = program.fail(&["train", "config.toml", "--resume"]);
    let holder = format!("is being written by process {} on ", first.id());
    assert!(said.contains(&holder) && said.contains("since 20"), "{said}");
    send("USR1", first.id());
    let output = wait_within(first, Duration::from_secs(20));
    assert_eq!(output.status.code(), Some(INTERRUPTED));
}

#[test]
fn a_change_of_meaning_needs_leave_and_is_written_down() {
    let program = Program::new();
    program.train(1, &["run.steps=10"]);
    let change = ["run.steps=12", "checkpoint.resume=true", "optim.lr=0.02"];
    let sets: Vec<&str> = change.iter().flat_map(|set| ["--set", set]).collect();
    let said = program.fail(&[&["train", "config.toml"][..], &sets].concat());
    let remedy = "allow it with --set 'checkpoint.allow_changes=[\"optim\", \"schedule\"]'";
    assert!(said.contains("run.steps: 10 -> 12") && said.contains(remedy), "{said}");
    let part = ["checkpoint.allow_changes=['optim']"];
    let sets: Vec<&str> = change.iter().chain(&part).flat_map(|set| ["--set", set]).collect();
    let said = program.fail(&[&["train", "config.toml"][..], &sets].concat());
    assert!(said.contains("run.steps: 10 -> 12") && !said.contains("optim.lr:"), "{said}");

    // Other tokens are a change of meaning, too.
    fs::write(program.path("text.txt"), "other words ".repeat(400)).expect("a text");
    let said = program.fail(&["train", "config.toml", "--resume", "--set", "run.steps=10"]);
    assert!(said.contains("not the data") && said.contains("allow_changes=[\"data\"]"), "{said}");
    let leave = ["checkpoint.allow_changes=['optim', 'schedule', 'data']"];
    program.train(1, &[&change[..], &leave].concat());
    assert_eq!(program.losses("run").len(), 12);
    let checkpoint = Checkpoint::open(&program.path("run/latest")).expect("a checkpoint");
    let [allowed] = &checkpoint.run_state().allowed_changes[..] else { panic!("one resume") };
    assert_eq!(allowed.step, 10);
    let expected = ["optim.lr: 0.01 -> 0.02", "run.steps: 10 -> 12", "the training data: "];
    for (found, expected) in allowed.changes.iter().zip(expected) {
        assert!(found.starts_with(expected), "{allowed:?}");
    }
}

#[test]
fn data_that_has_moved_is_the_same_data() {
    let program = Program::new();
    program.train(1, &["run.steps=10", "run.dir='whole'"]);
    program.train(1, &["run.steps=10"]);
    fs::remove_dir_all(program.path("run/checkpoints/step-00000010")).expect("a checkpoint");
    fs::rename(program.path("text.txt"), program.path("moved.txt")).expect("a text");
    let moved = ["run.steps=10", "data.text='moved.txt'", "checkpoint.resume=true"];
    program.train(1, &moved);
    assert_eq!(program.hash("run", 10), program.hash("whole", 10));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_when_told_to() {
    let program = Program::new();
    program.train(1, &[]);
    let expected = program.hash("run", 20);
    let masters = program.path("run/checkpoints/step-00000020/grove/masters.safetensors");
    let mut bytes = fs::read(&masters).expect("masters");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&masters, bytes).expect("masters");
    let said = program.fail(&["train", "config.toml", "--resume"]);
    assert!(said.contains("masters.safetensors has sha256"), "{said}");
    assert!(said.contains("set checkpoint.fallback = true to go on from step 10"), "{said}");
    let arguments =
        ["train", "config.toml", "--resume", "--set", "checkpoint.fallback=true", "--set"];
    let two_ranks = [&arguments[..], &["parallel.zero=1"]].concat();
    let output = program.mpirun(2, &two_ranks).output().expect("mpirun starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("it is passed over"), "{said}");
    assert_eq!(program.hash("run", 20), expected);
    Checkpoint::open(&program.path("run/latest")).expect("whole").verify().expect("right");
}

#[test]
fn a_stop_saves_from_every_phase_on_all_ranks() {
    let program = Program::new();
    let overrides = [
        "run.steps=1000000",
        "checkpoint.every=3",
        "parallel.zero=1",
        "eval.every=5",
        "metrics.tensorboard=false",
    ];
    let sets: Vec<&str> = overrides.iter().flat_map(|over| ["--set", over]).collect();
    for phase in ["start", "data", "forward", "backward", "eval", "save"] {
        let _ = fs::remove_dir_all(program.path("run"));
        let train = [&["train", "config.toml"][..], &sets].concat();
        let job = program.mpirun(2, &train).spawn().expect("mpirun starts");
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        let shows =
            || LastSeen::read(&program.path("run"), 1).is_ok_and(|seen| seen.phase == phase);
        if phase != "start" {
            wait_for(&program.path("run/checkpoints/step-00000003"));
        }
        while !shows() {
            assert!(std::time::Instant::now() < deadline, "rank 1 is never in {phase}");
        }
        send("USR1", job.id());
        let output = wait_within(job, Duration::from_secs(20));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(INTERRUPTED), "in {phase}: {said}");
        let records = if phase == "start" { Vec::new() } else { program.losses("run") };
        if let Some((step, _)) = records.last() {
            let latest = fs::read_link(program.path("run/latest")).expect("a link");
            assert_eq!(latest, Path::new(&format!("checkpoints/step-{step:08}")), "in {phase}");
            Checkpoint::open(&program.path("run/latest")).expect("whole").verify().expect("right");
        }
    }
}

#[test]
fn metrics_that_find_no_room_cost_one_warning_each() {
    let program = Program::new();
    let disk = program.path("disk");
    fs::create_dir_all(&disk).expect("a folder");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16k", "tmpfs"])
        .arg(&disk)
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("skipped: this user cannot mount a small disk");
        return;
    }
    // The records and the plots lie on the small disk, which they fill; all else does not.
    fs::create_dir_all(program.path("run")).expect("a folder");
    fs::create_dir_all(disk.join("tensorboard")).expect("a folder");
    symlink(disk.join("metrics.jsonl"), program.path("run/metrics.jsonl")).expect("a link");
    symlink(disk.join("tensorboard"), program.path("run/tensorboard")).expect("a link");
    let output = program.command(&["train", "config.toml"]).output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let unmounted = Command::new("umount").arg("-l").arg(&disk).status();
    assert!(unmounted.expect("umount runs").success());
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("metrics.jsonl").count(), 1, "{said}");
    assert_eq!(said.matches("No space left on device").count(), 2, "{said}");
    program.hash("run", 20);
}

/// The short form of `scripts/torture`.
#[test]
fn a_run_that_is_killed_again_and_again_comes_to_the_same_end() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/torture");
    let output = Command::new(script)
        .args(["--kills", "3", "--seed", "7", "--steps", "60"])
        .env("GROVE_PROGRAM", env!("CARGO_BIN_EXE_grove"))
        .output()
        .expect("the script starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("3 of 3 kills"), "{said}");
}
