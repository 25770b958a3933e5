//! The steady state of a run: steps use again what steps before them have freed.

use crate::program::Program;

/// A tensor of the stream has 1 MiB here: given back and asked for again, it costs 256 pages.
const SHAPE: [&str; 9] = [
    "model.hidden_size=256",
    "model.intermediate_size=704",
    "batch.sequence_length=512",
    "batch.micro_batch_size=4",
    "batch.micro_batches=2",
    "data.validation_fraction=0.3",
    "precision='bf16'",
    "eval.every=0",
    "checkpoint.every=0",
];
const STEPS: usize = 12;
/// Steps in which memory is still touched for the first time.
const WARMUP: usize = 4;
/// Pages a step: stacks, records, and what threads keep for themselves. One such tensor is above it.
const MAX_PAGES: u64 = 200;

/// Pages that the steps after the first ones were given, a step.
fn pages_a_step(program: &Program, dir: &str) -> u64 {
    let text = std::fs::read_to_string(program.path(dir).join("metrics.jsonl")).expect("records");
    let records = text.lines().map(|line| serde_json::from_str(line).expect("a record"));
    let pages: Vec<u64> = records
        .filter(|record: &serde_json::Value| record["kind"] == "step")
        .map(|record| record["pages_given"].as_u64().expect("a count"))
        .collect();
    assert_eq!(pages.len(), STEPS);
    (pages[STEPS - 1] - pages[WARMUP]) / (STEPS - 1 - WARMUP) as u64
}

#[test]
fn a_step_asks_the_system_for_no_memory() {
    let program = Program::new();
    let steps = format!("run.steps={STEPS}");
    for (ranks, zero) in [(1, 0), (2, 3)] {
        let (dir, zero) = (format!("run.dir='{ranks}'"), format!("parallel.zero={zero}"));
        let all = SHAPE.into_iter().chain([steps.as_str(), dir.as_str(), zero.as_str()]);
        let sets: Vec<&str> = all.flat_map(|set| ["--set", set]).collect();
        let train = [&["train", "config.toml"][..], &sets].concat();
        let output = program.mpirun(ranks, &train).output().expect("mpirun starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pages = pages_a_step(&program, &ranks.to_string());
        assert!(pages <= MAX_PAGES, "{ranks} rank(s): {pages} pages a step");
    }
}
