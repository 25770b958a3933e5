//! A run that was killed and resumed is the run that was not.

use std::fs;
use std::process::Child;

use grove::checkpoint::{Checkpoint, Contents, TensorFile, TensorRecord, save};

use crate::program::{Program, wait_for};

const WHOLE: [&str; 3] = ["run.dir='whole'", "run.steps=40", "checkpoint.keep_last=9"];
const PART: [&str; 3] = ["run.dir='part'", "run.steps=40", "checkpoint.keep_last=9"];

/// Steps 21 to 40 of a run's losses.
fn second_half(losses: &[(u64, f64)]) -> &[(u64, f64)] {
    &losses[20..]
}

/// Goes back to the checkpoint of step 20, as if the process had died right after it.
fn forget_after_20(program: &Program, run: &str) {
    for step in (21..=40).filter(|step| step % 10 == 0) {
        let folder = program.path(&format!("{run}/checkpoints/step-{step:08}"));
        if folder.exists() {
            fs::remove_dir_all(folder).expect("a checkpoint");
        }
    }
}

#[test]
fn a_killed_and_resumed_run_equals_an_uninterrupted_one_and_a_cold_start_does_not() {
    let program = Program::new();
    program.train(1, &WHOLE);

    // Killed without warning somewhere after step 20, and resumed from there.
    let mut arguments = vec!["train", "config.toml"];
    PART.iter().for_each(|over| arguments.extend(["--set", over]));
    let child = program.command(&arguments).spawn().expect("the program starts");
    wait_for(&program.path("part/checkpoints/step-00000020"));
    kill(child);
    forget_after_20(&program, "part");
    program.train(1, &[&PART[..], &["checkpoint.resume=true"]].concat());
    assert_eq!(program.hash("part", 40), program.hash("whole", 40));
    assert_eq!(program.losses("part"), program.losses("whole"));

    // Cold: the same weights at step 20, and nothing of what the optimizer knew.
    program.train(1, &["run.dir='cold'", "run.steps=40", "checkpoint.keep_last=9"]);
    forget_after_20(&program, "cold");
    forget_optimizer(&program, "cold");
    assert_eq!(program.hash("cold", 20), program.hash("whole", 20));
    let cold = ["run.dir='cold'", "run.steps=40", "checkpoint.resume=true"];
    program.train(1, &cold);
    assert_ne!(program.hash("cold", 40), program.hash("whole", 40));
    let (cold, whole) = (program.losses("cold"), program.losses("whole"));
    assert_ne!(second_half(&cold), second_half(&whole));
}

fn kill(mut child: Child) {
    child.kill().expect("a child that still runs, or has just ended");
    child.wait().expect("a child");
}

/// Replaces the checkpoint of step 20 by one whose optimizer state is zero.
fn forget_optimizer(program: &Program, run: &str) {
    let run = program.path(run);
    let checkpoint = Checkpoint::open(&run.join("checkpoints/step-00000020")).expect("step 20");
    let copy = |file: &TensorFile, value: fn(&[u8]) -> Vec<u8>| -> Vec<TensorRecord<'static>> {
        let record = |view: grove::checkpoint::TensorView<'_>| TensorRecord {
            spec: view.spec.clone(),
            bytes: value(view.bytes).into(),
        };
        file.tensors().map(record).collect()
    };
    let config_json = checkpoint.config_json().expect("a config");
    let contents = Contents {
        config_json: &config_json,
        model: copy(checkpoint.model(), <[u8]>::to_vec),
        masters: copy(checkpoint.masters(), <[u8]>::to_vec),
        optimizer: copy(checkpoint.optimizer(), |bytes| vec![0; bytes.len()]),
        run_state: checkpoint.run_state().clone(),
        extra_files: Vec::new(),
        max_shard_bytes: u64::MAX,
    };
    drop(save(&run, &contents).expect("a checkpoint"));
}

#[test]
fn resume_without_a_checkpoint_starts_anew() {
    let program = Program::new();
    program.train(1, &["run.dir='new'", "run.steps=3", "checkpoint.resume=true"]);
    assert_eq!(program.losses("new").len(), 3);
}

#[test]
fn a_finished_run_can_be_resumed_and_does_nothing() {
    let program = Program::new();
    program.train(1, &["run.steps=3"]);
    let before = program.hash("run", 3);
    program.train(1, &["run.steps=3", "checkpoint.resume=true"]);
    assert_eq!(program.hash("run", 3), before);
    assert_eq!(program.losses("run").len(), 3);
}

#[test]
fn a_cut_checkpoint_is_named_and_passed_over_when_told_to() {
    let program = Program::new();
    program.train(1, &["run.steps=20"]);
    let newest = program.path("run/checkpoints/step-00000020/grove/masters.safetensors");
    let bytes = fs::read(&newest).expect("masters");
    fs::write(&newest, &bytes[..bytes.len() / 2]).expect("half of them");
    let said = program.fail(&["train", "config.toml", "--resume"]);
    assert!(said.contains("step-00000020") && said.contains("checkpoint.fallback"), "{said}");
    let arguments = ["train", "config.toml", "--resume", "--set", "checkpoint.fallback=true"];
    let output = program.command(&arguments).output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("step-00000020") && said.contains("passed over"), "{said}");
    assert_eq!(program.losses("run").len(), 20);
}

#[test]
fn changed_bytes_are_found_before_a_resume() {
    let program = Program::new();
    program.train(1, &["run.steps=20"]);
    let masters = program.path("run/checkpoints/step-00000020/grove/masters.safetensors");
    let mut bytes = fs::read(&masters).expect("masters");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&masters, bytes).expect("masters");
    let said = program.fail(&["train", "config.toml", "--resume"]);
    assert!(said.contains("masters.safetensors"), "{said}");
}

#[test]
fn a_run_whose_checkpoints_are_all_damaged_does_not_start_anew() {
    let program = Program::new();
    program.train(1, &["run.steps=10"]);
    let manifest = program.path("run/checkpoints/step-00000010/manifest.json");
    fs::remove_file(manifest).expect("a manifest");
    let said = program.fail(&["train", "config.toml", "--resume"]);
    assert!(said.contains("no checkpoint that can be used"), "{said}");
    assert!(said.contains("step-00000010"), "{said}");
    assert_eq!(program.losses("run").len(), 10, "the records are as they were");
}

#[test]
fn a_refused_resume_leaves_the_plan_as_it_was() {
    let program = Program::new();
    program.train(1, &["run.steps=3"]);
    let before = fs::read_to_string(program.path("run/plan.toml")).expect("a plan");
    program.fail(&["train", "config.toml", "--resume", "--set", "optim.lr=0.5"]);
    assert_eq!(fs::read_to_string(program.path("run/plan.toml")).expect("a plan"), before);
}
