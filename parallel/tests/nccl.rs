//! Runs `examples/nccl_check.rs`: on a host with a GPU it checks the NCCL collective on one rank,
//! elsewhere that it says what is missing.

use std::process::Command;

#[test]
fn nccl_works_or_says_why_not() {
    let test_binary = std::env::current_exe().expect("Linux knows the path of a process");
    // Tests lie in target/<profile>/deps, examples in target/<profile>/examples.
    let profile = test_binary.ancestors().nth(2).expect("the path has two folders above it");
    let output = Command::new(profile.join("examples").join("nccl_check"))
        .output()
        .expect("cargo builds examples before tests run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let reasons = ["is not usable", "CUDA's driver shows"];
    let skipped = stderr.contains("skipped: ") && reasons.iter().any(|why| stderr.contains(why));
    assert!(skipped || stderr.contains("ok: the ledger"), "{stderr}");
}
