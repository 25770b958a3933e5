//! Requests to stop: repeated ones, and those that come in the middle of a long step.

use std::time::{Duration, Instant};

use crate::program::{Program, send, wait_for, wait_within};

/// What the program promises to say when it was asked to stop and has saved.
const INTERRUPTED: i32 = 75;

#[test]
fn a_repeated_request_is_one_request() {
    let program = Program::new();
    // Seconds a step, so that it is under way at both signals.
    let steps = ["train", "config.toml", "--set", "batch.micro_batches=3000"];
    for (first, second) in [("TERM", "TERM"), ("USR1", "TERM"), ("INT", "TERM")] {
        let _ = std::fs::remove_dir_all(program.path("run"));
        let child = program.command(&steps).spawn().expect("the program starts");
        wait_for(&program.path("run/plan.toml"));
        std::thread::sleep(Duration::from_millis(300));
        send(first, child.id());
        std::thread::sleep(Duration::from_millis(100));
        send(second, child.id());
        let output = wait_within(child, Duration::from_secs(60));
        assert_eq!(output.status.code(), Some(INTERRUPTED), "SIG{first}, then SIG{second}");
    }
}

#[test]
fn within_a_grace_period_a_long_step_is_left_and_changes_nothing() {
    let program = Program::new();
    let overrides = [
        "run.steps=2",
        // A short step, and one of seconds.
        "batch.ramp_steps=1",
        "batch.ramp_from=4",
        "batch.micro_batches=800",
        "checkpoint.every=1",
        "checkpoint.grace_seconds=30",
        "parallel.zero=3",
        "parallel.keep_gathered_numel=0",
        "schedule.warmup_steps=0",
    ];
    let sets: Vec<&str> = overrides.iter().flat_map(|over| ["--set", over]).collect();
    let train = [&["train", "config.toml"][..], &sets].concat();
    let job = program.mpirun(2, &train).spawn().expect("mpirun starts");
    let records = program.path("run/metrics.jsonl");
    wait_for(&records);
    let first = || std::fs::read_to_string(&records).is_ok_and(|text| text.contains("\"step\":1,"));
    let deadline = Instant::now() + Duration::from_secs(60);
    while !first() {
        assert!(Instant::now() < deadline, "there is no first step");
        std::thread::sleep(Duration::from_millis(10));
    }
    let asked = Instant::now();
    send("USR1", job.id());
    let output = wait_within(job, Duration::from_secs(60));
    let waited = asked.elapsed();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(INTERRUPTED), "{said}");
    assert_eq!(program.losses("run").last().expect("a step").0, 1, "after {waited:?}: {said}");
    program.succeed(&[&train[..], &["--resume"]].concat());
    let whole = [&train[..], &["--set", "run.dir='whole'"]].concat();
    program.succeed(&whole);
    assert_eq!(program.hash("run", 2), program.hash("whole", 2));
}
