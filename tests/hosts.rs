//! Runs over two hosts: two network namespaces of this machine, see `scripts/two-hosts`.
//!
//! Where such hosts cannot be made, each test says why and passes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::program::{Program, send, wait_for, wait_within};

/// What `scripts/two-hosts` exits with where it cannot make hosts.
const SKIPPED: i32 = 77;
/// What the program promises to say when it was asked to stop and has saved.
const INTERRUPTED: i32 = 75;
/// Parameters of the model of these tests: every step sends at least one number for each.
const NUM_PARAMETERS: usize = 31_904;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts").join(name)
}

/// Whether this machine can play two hosts; if not, says why.
fn hosts_can_be_made() -> bool {
    let output = Command::new(script("two-hosts")).arg("true").output().expect("the script starts");
    let skipped = output.status.code() == Some(SKIPPED);
    assert!(skipped || output.status.success(), "{}", errors(&output));
    if skipped {
        eprint!("{}", errors(&output));
    }
    !skipped
}

/// `scripts/train` with these overrides on two ranks, one on each host.
fn train_on_two_hosts(program: &Program, overrides: &[&str]) -> Command {
    let mut command = Command::new(script("two-hosts"));
    command.arg(script("train")).args(["config.toml", "-n", "2", "--hostfile", "{hostfile}"]);
    for over in overrides {
        command.args(["--set", over]);
    }
    command
        .current_dir(program.path(""))
        .env("GROVE_PROGRAM", env!("CARGO_BIN_EXE_grove"))
        .env("OMP_NUM_THREADS", "1")
        .env("OMP_WAIT_POLICY", "passive")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn two_hosts_train_as_one_does() {
    if !hosts_can_be_made() {
        return;
    }
    let program = Program::new();
    let child = train_on_two_hosts(&program, &["run.dir='apart'", "parallel.zero=3"])
        .spawn()
        .expect("a script");
    let output = wait_within(child, Duration::from_secs(60));
    let said = errors(&output);
    assert!(output.status.success(), "{said}");
    for host in ["grove-a", "grove-b"] {
        // Two ranks on one host would send next to nothing over the cable.
        let expected = program.losses("apart").len() * NUM_PARAMETERS * size_of::<f32>() / 2;
        let sent = bytes_sent(&said, host);
        assert!(sent > expected, "{host} sent {sent} bytes, less than the {expected} of its sums");
    }
    program.train(1, &["run.dir='together'"]);
    assert_eq!(program.hash("apart", 20), program.hash("together", 20));
}

#[test]
fn a_signal_reaches_both_hosts_and_the_run_is_saved() {
    if !hosts_can_be_made() {
        return;
    }
    let program = Program::new();
    let child = train_on_two_hosts(&program, &["run.steps=1000000"]).spawn().expect("a script");
    wait_for(&program.path("run/checkpoints/step-00000010"));
    send("USR1", child.id());
    let output = wait_within(child, Duration::from_secs(20));
    assert_eq!(output.status.code(), Some(INTERRUPTED), "{}", errors(&output));
    let last = program.losses("run").last().expect("a step").0;
    program.hash("run", last);
    assert_eq!(ranks_in(&program.path("")), [], "nothing is left running");
}

#[test]
fn a_rank_that_dies_on_the_other_host_ends_the_job_and_its_host_is_named() {
    if !hosts_can_be_made() {
        return;
    }
    let program = Program::new();
    let child = train_on_two_hosts(&program, &["run.steps=1000000"]).spawn().expect("a script");
    wait_for(&program.path("run/checkpoints/step-00000010"));
    let ranks = ranks_in(&program.path(""));
    let &(_, victim) = ranks.iter().find(|(rank, _)| rank == "1").expect("rank 1");
    send("KILL", victim);
    let output = wait_within(child, Duration::from_secs(10));
    assert!(!output.status.success());
    let said = errors(&output);
    assert!(said.contains("rank 1") && said.contains("grove-b"), "nobody names both:\n{said}");
    assert_eq!(ranks_in(&program.path("")), [], "nothing is left running");
}

#[test]
fn a_host_that_vanishes_is_named_and_the_job_ends() {
    if !hosts_can_be_made() {
        return;
    }
    let program = Program::new();
    let watched = ["run.steps=1000000", "watchdog.stall_seconds=5", "watchdog.beat_seconds=0.5"];
    let mut child = train_on_two_hosts(&program, &watched).spawn().expect("a script");
    wait_for(&program.path("run/checkpoints/step-00000010"));
    let ranks = ranks_in(&program.path(""));
    let &(_, victim) = ranks.iter().find(|(rank, _)| rank == "1").expect("rank 1");
    let pull = ["--net", "ip", "link", "set", "eth0", "down"];
    let pulled =
        Command::new("nsenter").arg("--target").arg(victim.to_string()).args(pull).status();
    if !pulled.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this user cannot pull the cable between the hosts");
        child.kill().expect("a child");
        child.wait().expect("a child");
        return;
    }
    let output = wait_within(child, Duration::from_secs(30));
    assert!(!output.status.success());
    let said = errors(&output);
    let line = said.lines().find(|line| line.contains("has vanished: its host does not answer"));
    assert!(line.is_some_and(|line| line.contains("stalled: rank 1 on grove-b")), "{said}");
    assert_eq!(ranks_in(&program.path("")), [], "nothing is left running");
}

/// How many bytes a host has sent, from what `scripts/two-hosts` says at its end.
fn bytes_sent(said: &str, host: &str) -> usize {
    let line = said.lines().find_map(|line| line.strip_prefix(&format!("two-hosts: {host} sent ")));
    let count = line.and_then(|rest| rest.strip_suffix(" bytes")?.parse().ok());
    count.unwrap_or_else(|| panic!("nobody says what {host} sent:\n{said}"))
}

/// Number and process of every rank whose current directory is `folder`.
fn ranks_in(folder: &Path) -> Vec<(String, u32)> {
    const RANK: &[u8] = b"OMPI_COMM_WORLD_RANK=";
    let folder = folder.canonicalize().expect("the program's folder");
    let processes = std::fs::read_dir("/proc").expect("a list of processes").flatten();
    let rank_of = |process: PathBuf| {
        let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
        if process.join("cwd").read_link().ok()? != folder {
            return None;
        }
        let environment = std::fs::read(process.join("environ")).ok()?;
        let number = environment.split(|&byte| byte == 0).find_map(|it| it.strip_prefix(RANK))?;
        Some((String::from_utf8_lossy(number).into_owned(), pid))
    };
    processes.filter_map(|entry| rank_of(entry.path())).collect()
}
