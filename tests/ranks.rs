//! The same file on several ranks gives the same run.

use grove::step_numbers::agree_on;
use grove_parallel::collective::ThreadGroup;

use crate::program::Program;

#[test]
fn nothing_depends_on_the_rank_count() {
    let program = Program::new();
    program.train(1, &["run.dir='one'"]);
    assert_eq!(program.losses("one").len(), 20);
    for ranks in [2, 4] {
        let dir = format!("of{ranks}");
        program.train(ranks, &[&format!("run.dir='{dir}'")]);
        assert_eq!(program.losses(&dir), program.losses("one"), "{ranks} ranks");
        assert_eq!(program.hash(&dir, 20), program.hash("one", 20), "{ranks} ranks");
    }
}

#[test]
fn a_run_goes_on_at_another_rank_count() {
    let program = Program::new();
    program.train(1, &["run.dir='one'"]);
    program.train(2, &["run.dir='two'"]);
    let last = program.path("two/checkpoints/step-00000020");
    std::fs::remove_dir_all(last).expect("a checkpoint");
    program.train(1, &["run.dir='two'", "checkpoint.resume=true"]);
    assert_eq!(program.losses("two"), program.losses("one"));
    assert_eq!(program.hash("two", 20), program.hash("one", 20));
}

#[test]
fn ranks_that_start_from_different_things_are_refused_on_every_rank() {
    let outcomes = |steps: [i64; 3]| -> Vec<Result<(), grove::Error>> {
        let ranks = ThreadGroup::new(steps.len()).into_iter().zip(steps);
        let threads: Vec<_> = ranks
            .map(|(rank, step)| {
                std::thread::spawn(move || agree_on(&rank, [("the plan", 7), ("the step", step)]))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    };
    assert!(outcomes([4, 4, 4]).iter().all(Result::is_ok));
    for outcome in outcomes([4, 4, -3]) {
        let said = outcome.expect_err("the steps differ").to_string();
        assert!(said.contains("rank 2 differs from rank 0 in the step"), "{said}");
    }
}

#[test]
fn ranks_with_different_files_are_refused_before_anything_is_done() {
    let program = Program::new();
    let text = std::fs::read_to_string(program.path("config.toml")).expect("a config");
    let other = format!("{text}[parallel]\nzero = 3\n");
    std::fs::write(program.path("other.toml"), other).expect("a config");
    let grove = env!("CARGO_BIN_EXE_grove");
    let second = [":", "-n", "1", grove, "train", "other.toml"];
    let arguments = [&["train", "config.toml"][..], &second].concat();
    let output = program.mpirun(1, &arguments).output().expect("mpirun starts");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("rank 1 differs from rank 0 in the plan"), "{said}");
    assert!(!program.path("run").exists(), "nothing was written");
}

#[test]
fn profiled_steps_are_traced_on_every_rank_and_change_nothing() {
    let program = Program::new();
    program.train(2, &["run.dir='plain'"]);
    program.train(2, &["run.dir='traced'", "profile.steps=[2, 3]"]);
    assert_eq!(program.hash("traced", 20), program.hash("plain", 20));
    for rank in 0..2 {
        let path = program.path(&format!("traced/profile/rank-{rank}.json"));
        let text = std::fs::read_to_string(path).expect("a trace");
        let trace: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let events = trace["traceEvents"].as_array().expect("events");
        let count = |phase: &str| events.iter().filter(|event| event["cat"] == phase).count();
        assert_eq!(count("optim"), 2, "one for each traced step");
        assert!(count("forward") > 2 && count("backward") > 2, "units apart: {text}");
    }
    let metrics = std::fs::read_to_string(program.path("traced/metrics.jsonl")).expect("metrics");
    let profiled = |line: &&str| line.contains("\"unit_seconds\"");
    assert_eq!(metrics.lines().filter(profiled).count(), 2);
    assert!(!program.path("plain/profile").exists());
}

/// Products and attention are timed in every step, and are no more of it than forward, head and backward.
#[test]
fn the_work_of_a_step_is_timed_and_lies_within_its_phases() {
    let program = Program::new();
    program.train(1, &["run.dir='timed'"]);
    let records = program.step_records("timed");
    assert!(!records.is_empty());
    for record in records {
        let seconds = |part: &str, name: &str| record[part][name].as_f64().expect("seconds");
        let [products, attention] =
            ["products", "attention"].map(|name| seconds("work_seconds", name));
        assert!(products > 0.0 && attention > 0.0, "{record}");
        let phases = ["forward", "head", "backward"].map(|name| seconds("phases", name));
        assert!(products + attention <= phases.iter().sum(), "{record}");
    }
}
