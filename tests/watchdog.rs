//! Ranks that hang, stop or die: named by one line, and nobody is left behind.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::program::{Program, rank_pid, send, wait_for, wait_within};

/// What the program promises to say when the watchdog has ended it.
const STALLED: i32 = 76;

/// Seconds without progress that count as a stall here: well above a step of these tests, on a
/// machine that does other things too.
const STALL: &str = "watchdog.stall_seconds=4";

const SETTINGS: [&str; 4] =
    [STALL, "watchdog.beat_seconds=0.25", "run.steps=1000000", "eval.every=0"];

/// How long the line may take, and the end of all ranks.
const LIMIT: Duration = Duration::from_secs(30);

fn train(more: &[&str]) -> Vec<String> {
    let settings = SETTINGS.iter().chain(more).flat_map(|over| ["--set", over]);
    ["train", "config.toml"].into_iter().chain(settings).map(str::to_owned).collect()
}

/// `inject` with a fault in rank 1, on two ranks.
fn inject(program: &Program, fault: &str, more: &[&str]) -> Output {
    // Cargo builds examples with the tests, beside the program.
    let program_path = PathBuf::from(env!("CARGO_BIN_EXE_grove"));
    let example = program_path.parent().expect("a folder").join("examples/inject");
    let mut command = program.mpirun_of(2, &example);
    command.args([fault, "1", "200"]).args(train(more));
    wait_within(command.spawn().expect("mpirun starts"), LIMIT)
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The line in which the watchdog explains a stall.
fn line(said: &str) -> String {
    let line = said.lines().find(|line| line.contains("grove: stalled: "));
    line.unwrap_or_else(|| panic!("no line:\n{said}")).to_owned()
}

/// No process is left whose current directory is the program's folder.
fn nobody_is_left(program: &Program) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let folder = program.path("").canonicalize().expect("a folder");
    let remains = || {
        let processes = std::fs::read_dir("/proc").expect("processes").flatten();
        let inside =
            |process: PathBuf| process.join("cwd").read_link().is_ok_and(|cwd| cwd == folder);
        processes.filter(|process| inside(process.path())).count()
    };
    while remains() > 0 {
        assert!(Instant::now() < deadline, "{} processes are left", remains());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_stopped_rank_is_named_whichever_it_is_and_all_end() {
    for victim in [0, 1] {
        let program = Program::new();
        let arguments = train(&[]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let job = program.mpirun(2, &arguments).spawn().expect("mpirun starts");
        wait_for(&program.path("run/checkpoints/step-00000010"));
        let pid = rank_pid(job.id(), victim);
        send("STOP", pid);
        let output = wait_within(job, LIMIT);
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(STALLED), "{said}");
        let line = line(&said);
        assert!(line.contains(&format!("stalled: rank {victim} on ")), "{line}");
        assert!(line.contains(&format!("(process {pid}) is stopped (SIGSTOP)")), "{line}");
        assert!(line.contains(&format!("waiting for it: rank {} in call", 1 - victim)), "{line}");
        nobody_is_left(&program);
        // The stacks of both.
        let file = line.rsplit("stacks in ").next().expect("a file");
        let stacks = std::fs::read_to_string(program.path(file)).expect("stacks");
        for rank in [0, 1] {
            assert!(stacks.contains(&format!("== rank {rank} ")), "{stacks}");
        }
        assert!(stacks.contains("grove-mpi"), "{stacks}");
    }
}

#[test]
fn a_killed_rank_is_named_with_what_it_died_in() {
    let program = Program::new();
    let arguments = train(&[]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let job = program.mpirun(2, &arguments).spawn().expect("mpirun starts");
    wait_for(&program.path("run/checkpoints/step-00000010"));
    send("KILL", rank_pid(job.id(), 1));
    let output = wait_within(job, LIMIT);
    let said = errors(&output);
    assert!(!output.status.success());
    let line = said.lines().find(|line| line.contains("is gone without a word")).expect("a line");
    assert!(line.contains("rank 1 on ") && line.contains("in step "), "{line}");
    nobody_is_left(&program);
}

#[test]
fn faults_inside_a_rank_are_told_apart() {
    for (fault, more, expected) in [
        ("panic", &[][..], "a panic, which is a mistake in Grove"),
        ("exit", &[], "rank 1 on "),
        ("branch", &[], "another branch"),
        ("branch", &["parallel.check=false"], "is in another call than rank 0"),
        ("shape", &[], "of 12345 f32"),
        ("spin", &[], "stalled: rank 1 on "),
        ("data", &[], "has waited for data"),
    ] {
        let program = Program::new();
        let output = inject(&program, fault, more);
        let said = errors(&output);
        assert!(!output.status.success(), "{fault}");
        assert!(said.contains(expected) && said.contains("rank 1"), "{fault} {more:?}:\n{said}");
        if ["spin", "data"].contains(&fault) {
            assert_eq!(output.status.code(), Some(STALLED), "{said}");
            assert!(line(&said).contains("stalled: rank 1 on "), "{said}");
        }
        if fault == "exit" {
            assert!(said.contains("is gone without a word"), "{said}");
        }
        nobody_is_left(&program);
    }
}

#[test]
fn a_run_that_is_well_raises_no_alarm_and_the_watch_costs_next_to_nothing() {
    let program = Program::new();
    // Steps, evaluations and saves take turns for some seconds.
    let settings = [
        "watchdog.stall_seconds=2",
        "watchdog.beat_seconds=0.25",
        "run.steps=150",
        "eval.every=3",
        "checkpoint.every=5",
    ];
    program.train(2, &settings);
    assert!(!program.path("run/watchdog").exists());
}

#[test]
fn a_run_of_one_rank_is_watched_too_and_may_do_without() {
    let program = Program::new();
    let program_path = PathBuf::from(env!("CARGO_BIN_EXE_grove"));
    let example = program_path.parent().expect("a folder").join("examples/inject");
    let spin = |more: &[&str]| {
        let mut command: Command = program.command_of(&example);
        command.args(["spin", "0", "200"]).args(train(more)).spawn().expect("it starts")
    };
    let output = wait_within(spin(&[]), LIMIT);
    assert_eq!(output.status.code(), Some(STALLED), "{}", errors(&output));
    assert!(line(&errors(&output)).contains("stalled: rank 0 on "));

    let mut unwatched = spin(&["run.dir='unwatched'", "watchdog.stall_seconds=0"]);
    wait_for(&program.path("unwatched/metrics.jsonl"));
    std::thread::sleep(Duration::from_secs(6));
    assert!(unwatched.try_wait().expect("a child").is_none(), "nobody is to end it");
    unwatched.kill().expect("a child");
    unwatched.wait().expect("a child");
}
