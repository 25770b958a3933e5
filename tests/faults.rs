//! Ends that nobody planned: signals, dying ranks, full disks.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use grove::beacon::LastSeen;

use crate::program::{Program, rank_pid, send, wait_for, wait_within};

/// What the program promises to say when it was asked to stop and has saved.
const INTERRUPTED: i32 = 75;
/// What it says when a second signal left no time to save.
const ENDED_AT_ONCE: i32 = 130;

#[test]
fn a_signal_saves_and_exits_with_its_own_code() {
    for signal in ["INT", "TERM", "USR1"] {
        let program = Program::new();
        let arguments = ["train", "config.toml", "--set", "run.steps=1000000"];
        let child = program.command(&arguments).spawn().expect("the program starts");
        wait_for(&program.path("run/checkpoints/step-00000010"));
        send(signal, child.id());
        let output = wait_within(child, Duration::from_secs(20));
        assert_eq!(output.status.code(), Some(INTERRUPTED), "after SIG{signal}");
        let last = program.losses("run").last().expect("a step").0;
        program.hash("run", last);
    }
}

#[test]
fn a_second_signal_exits_at_once() {
    let program = Program::new();
    // A step so long that the first signal cannot have been acted on.
    let steps = ["train", "config.toml", "--set", "batch.micro_batches=100000"];
    let child = program.command(&steps).spawn().expect("the program starts");
    wait_for(&program.path("run/plan.toml"));
    std::thread::sleep(Duration::from_secs(1));
    send("INT", child.id());
    std::thread::sleep(Duration::from_millis(200));
    send("INT", child.id());
    let output = wait_within(child, Duration::from_secs(3));
    assert_eq!(output.status.code(), Some(ENDED_AT_ONCE));
}

#[test]
fn a_rank_killed_in_any_phase_ends_the_job_and_has_left_word() {
    let program = Program::new();
    let overrides = [
        "run.steps=1000000",
        "checkpoint.every=3",
        "parallel.zero=3",
        "parallel.keep_gathered_numel=0",
    ];
    let sets: Vec<&str> = overrides.iter().flat_map(|over| ["--set", over]).collect();
    for phase in ["forward", "backward", "reduce", "gather", "save"] {
        let _ = std::fs::remove_dir_all(program.path("run"));
        let train = [&["train", "config.toml"][..], &sets].concat();
        let job = program.mpirun(2, &train).spawn().expect("mpirun starts");
        wait_for(&program.path("run/checkpoints/step-00000003"));
        let victim = rank_pid(job.id(), 1);
        // Stopped first, so that what it shows is what it dies in.
        stop_in(&program, phase, victim);
        send("KILL", victim);
        let output = wait_within(job, Duration::from_secs(10));
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("rank 1"), "the launcher does not name rank 1:\n{said}");
        let lost = ["lost", "config.toml", "--rank", "1", "--signal", "9 (Killed)"];
        let told = program.succeed(&[&lost[..], &sets].concat());
        assert!(told.contains("rank 1 on ") && told.contains("signal 9 (Killed)"), "{told}");
        assert!(told.contains(&format!("phase {phase}")), "{told}");
        if ["forward", "backward", "gather"].contains(&phase) {
            assert!(
                ["embedding", "block", "head"].iter().any(|unit| told.contains(unit)),
                "{told}"
            );
        }
    }
}

/// Stops a process while its rank, number 1, shows `phase`.
fn stop_in(program: &Program, phase: &str, process: u32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let shows =
            || LastSeen::read(&program.path("run"), 1).is_ok_and(|seen| seen.phase == phase);
        while !shows() {
            assert!(Instant::now() < deadline, "rank 1 is never in {phase}");
            // The ranks may need the core.
            std::thread::sleep(Duration::from_micros(50));
        }
        send("STOP", process);
        // The signal arrives a little later than the look.
        std::thread::sleep(Duration::from_millis(20));
        if shows() {
            return;
        }
        send("CONT", process);
    }
}

#[test]
fn a_rank_that_fails_ends_the_job_and_says_why() {
    let program = Program::new();
    program.succeed(&["tokenize", "text.txt", "data.tokens"]);
    let path = program.path("data.tokens");
    let bytes = std::fs::read(&path).expect("a token file");
    std::fs::write(&path, &bytes[..bytes.len() - 100]).expect("a shorter token file");
    std::fs::write(program.path("config.toml"), {
        let config = std::fs::read_to_string(program.path("config.toml")).expect("a config");
        config.replace("text = \"text.txt\"", "tokens = \"data.tokens\"")
    })
    .expect("a config");
    let child = program.mpirun(2, &["train", "config.toml"]).spawn().expect("mpirun starts");
    let output = wait_within(child, Duration::from_secs(10));
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("data.tokens") && said.contains("rank "), "{said}");
}

#[test]
fn a_full_disk_costs_the_new_checkpoint_and_not_the_old_ones() {
    let program = Program::new();
    program.train(1, &["run.dir='roomy'", "run.steps=30", "checkpoint.keep_last=9"]);
    let disk = program.path("disk");
    std::fs::create_dir(&disk).expect("a folder");
    // A checkpoint takes 524 kB, and a new one is made before an old one goes: the first fits, the
    // second does not.
    let Some(_unmount) = mount(&disk, "size=800k") else { return };
    let arguments = ["train", "config.toml", "--set", "run.dir='disk'", "--set", "run.steps=30"];
    let output = program.command(&arguments).output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "the last save is not made: {said}");
    assert!(said.contains("the run goes on, its last checkpoint is step 10"), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(program.losses("disk").len(), 30, "every step was done and recorded");

    // Nothing is lost or left behind, and with room again the run comes to the same end.
    let folders = std::fs::read_dir(disk.join("checkpoints")).expect("checkpoints");
    assert_eq!(folders.count(), 1, "no unfinished checkpoint stays");
    assert_eq!(program.hash("disk", 10), program.hash("roomy", 10));
    let larger = Command::new("mount").args(["-o", "remount,size=8m"]).arg(&disk).status();
    assert!(larger.expect("mount runs").success());
    program.train(1, &["run.dir='disk'", "run.steps=30", "checkpoint.resume=true"]);
    assert_eq!(program.hash("disk", 30), program.hash("roomy", 30));
}

/// A disk of its own for a folder; `None`, and said, where this user may not mount one.
fn mount<'a>(folder: &'a Path, size: &str) -> Option<Unmount<'a>> {
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", size, "tmpfs"])
        .arg(folder)
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("skipped: this user cannot mount a small disk");
    }
    mounted.then_some(Unmount(folder))
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}
