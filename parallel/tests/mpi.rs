//! Runs `examples/mpi_check.rs` on processes: `mpirun` must be on the PATH.

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

/// Peers of a rank that ends must end too within this time; `mpirun` itself takes about one
/// second, and a busy machine a few more.
const END_WITHIN: Duration = Duration::from_secs(30);

fn mpi_check(num_ranks: usize, mode: &str) -> Output {
    let test_binary = std::env::current_exe().expect("Linux knows the path of a process");
    // Tests lie in target/<profile>/deps, examples in target/<profile>/examples.
    let profile = test_binary.ancestors().nth(2).expect("the path has two folders above it");
    Command::new("mpirun")
        .args(["--allow-run-as-root", "--oversubscribe", "-n", &num_ranks.to_string()])
        .arg(profile.join("examples").join("mpi_check"))
        .arg(mode)
        .env("OMP_NUM_THREADS", "1")
        .output()
        .expect("mpirun (OpenMPI) is on the PATH")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_operation_on_two_three_and_four_processes() {
    for num_ranks in [2, 3, 4] {
        let output = mpi_check(num_ranks, "operations");
        assert!(output.status.success(), "{num_ranks} ranks: {}", stderr(&output));
        let passed = format!("{num_ranks} ranks: all operations agree");
        assert!(stderr(&output).contains(&passed), "{}", stderr(&output));
    }
}

#[test]
fn processes_in_different_calls_are_told_of_each_other() {
    let output = mpi_check(3, "mismatch");
    assert!(!output.status.success());
    let message = "rank 0 is in call 0, all_reduce(Sum) `loss` of 4 f32 but rank 2 is in call 0, \
                   all_reduce(Sum) `loss` of 5 f32";
    assert!(stderr(&output).contains(message), "{}", stderr(&output));
}

#[test]
fn errors_of_a_group_name_ranks_of_the_run() {
    let output = mpi_check(4, "group-mismatch");
    assert!(!output.status.success());
    let message = "rank 2 is in call 1, barrier `pair` but rank 3 is in call 1, barrier `odd`";
    assert!(stderr(&output).contains(message), "{}", stderr(&output));
}

#[test]
fn a_process_that_aborts_or_panics_ends_its_peers() {
    for (mode, says) in [("abort", "rank 1 gives up"), ("panic", "rank 1 panics")] {
        let start = Instant::now();
        let output = mpi_check(3, mode);
        assert!(!output.status.success(), "{mode}");
        assert!(stderr(&output).contains(says), "{mode}: {}", stderr(&output));
        assert!(start.elapsed() < END_WITHIN, "{mode}: {:?}", start.elapsed());
    }
}
