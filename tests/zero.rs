//! ZeRO: the same bits at every rank count, stage and shard degree; memory and traffic as the
//! formulas say.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::program::{Program, rank_pid, wait_for, wait_for_end};

/// Micro-batches of a step: 2, 3 and 4 ranks do not share them evenly.
const UNEVEN: &str = "batch.micro_batches=7";
/// Everything is sharded, however small.
const NO_THRESHOLD: &str = "parallel.keep_gathered_numel=0";
/// Losses of f32 sums in another order differ by about 1e-7 a step.
const SAME_LOSS: f64 = 1e-6;

/// Trains a toy in every way, and expects one hash.
fn every_way_gives_the_same_bits(program: &Program, precision: &str) {
    let precision = format!("precision={precision}");
    let mut reference = None;
    let mut train = |ranks: usize, overrides: &[&str]| {
        let dir = format!("run.dir='{}'", overrides.join(" ").replace('.', "-"));
        let dir = dir.replace("run.dir='", &format!("run.dir='of{ranks} "));
        let common = [dir.as_str(), &precision, UNEVEN, NO_THRESHOLD, "eval.every=0"];
        // A later setting replaces an earlier one.
        program.train_in_threads(ranks, &[&common[..], overrides].concat());
        let run = dir.trim_start_matches("run.dir='").trim_end_matches('\'');
        let hash = program.hash(run, 20);
        let expected = reference.get_or_insert_with(|| hash.clone());
        assert_eq!(&hash, expected, "{ranks} ranks, {overrides:?}");
    };
    for recompute in ["none", "block"] {
        let recompute = format!("memory.recompute={recompute}");
        for ranks in 1..=4 {
            for zero in 0..=3 {
                train(ranks, &[&recompute, &format!("parallel.zero={zero}")]);
            }
        }
        for zero in 1..=3 {
            let zero = format!("parallel.zero={zero}");
            train(4, &[&recompute, &zero, "parallel.shard_degree=2"]);
        }
    }
    train(4, &["parallel.zero=2", "parallel.shard_degree=1"]);
    train(4, &["parallel.zero=3", "parallel.shard_degree=4", "memory.recompute=elementwise"]);
    // The embedding and the head are sharded, the blocks are not.
    train(2, &["parallel.zero=3", "parallel.keep_gathered_numel=8000"]);
    train(2, &["parallel.zero=3", "parallel.prefetch_units=0"]);
    train(2, &["parallel.zero=3", "parallel.prefetch_units=5"]);
    train(2, &["parallel.zero=3", "memory.optimizer=host"]);
}

#[test]
fn a_llama_in_fp32_has_the_same_bits_in_every_way() {
    every_way_gives_the_same_bits(&Program::new(), "fp32");
}

#[test]
fn a_llama_in_bf16_has_the_same_bits_in_every_way() {
    every_way_gives_the_same_bits(&Program::new(), "bf16");
}

#[test]
fn a_gpt2_in_fp32_has_the_same_bits_in_every_way() {
    let program = Program::new();
    program.use_gpt2();
    every_way_gives_the_same_bits(&program, "fp32");
}

#[test]
fn a_gpt2_in_bf16_has_the_same_bits_in_every_way() {
    let program = Program::new();
    program.use_gpt2();
    every_way_gives_the_same_bits(&program, "bf16");
}

/// Matrices large enough to be quantized, whose shards are cut inside of them.
const QUANTIZED_MODEL: [&str; 2] = ["model.hidden_size=64", "model.intermediate_size=176"];

#[test]
fn every_rule_and_form_of_state_has_the_same_bits_in_every_way() {
    let program = Program::new();
    for rule in [
        &["optim.rule=lion"][..],
        &["optim.rule=adamw_8bit"],
        &["optim.rule=lion_8bit"],
        &["optim.state_dtype=bf16"],
        &["optim.rule=lion", "optim.state_dtype=bf16"],
    ] {
        let mut expected = None;
        for (ranks, zero, shard_degree) in [(1, 0, 0), (2, 1, 0), (3, 3, 0), (4, 2, 2)] {
            let dir = format!("run.dir='{} on {ranks}'", rule.join(" "));
            let sharding = [
                format!("parallel.zero={zero}"),
                format!("parallel.shard_degree={shard_degree}"),
                "precision=bf16".to_owned(),
                "eval.every=0".to_owned(),
            ];
            let sharding: Vec<&str> = sharding.iter().map(String::as_str).collect();
            let common = [&[dir.as_str(), UNEVEN, NO_THRESHOLD][..], &QUANTIZED_MODEL].concat();
            // Stopped and resumed at the next rank count, so that every form of state is stored.
            let first = [&common[..], &sharding, rule, &["run.steps=20"]].concat();
            program.train_in_threads(ranks, &first);
            let run = dir.trim_start_matches("run.dir='").trim_end_matches('\'');
            let last = program.path(&format!("{run}/checkpoints/step-00000020"));
            std::fs::remove_dir_all(last).expect("a checkpoint");
            let resumed =
                [&common[..], rule, &["precision=bf16", "checkpoint.resume=true"]].concat();
            program.train_in_threads(5 - ranks, &resumed);
            let hash = program.hash(run, 20);
            let expected = expected.get_or_insert_with(|| hash.clone());
            assert_eq!(&hash, expected, "{rule:?} on {ranks} ranks");
        }
    }
}

#[test]
fn processes_over_mpi_have_the_bits_of_one() {
    let program = Program::new();
    program.train(1, &["run.dir='one'", UNEVEN]);
    for (ranks, zero, shard_degree) in [(2, 1, 0), (2, 3, 0), (3, 2, 0), (4, 0, 0), (4, 3, 2)] {
        let dir = format!("of{ranks} at {zero}");
        let zero = format!("parallel.zero={zero}");
        let shard_degree = format!("parallel.shard_degree={shard_degree}");
        let named = format!("run.dir='{dir}'");
        program.train(ranks, &[&named, &zero, &shard_degree, UNEVEN, NO_THRESHOLD]);
        assert_eq!(program.hash(&dir, 20), program.hash("one", 20), "{dir}");
        assert_eq!(program.losses(&dir), program.losses("one"), "{dir}");
    }
}

#[test]
fn a_killed_run_goes_on_at_other_ranks_and_another_stage() {
    let program = Program::new();
    let length = ["run.steps=40", "checkpoint.keep_last=9", UNEVEN, NO_THRESHOLD];
    program.train(1, &[&length[..], &["run.dir='whole'"]].concat());
    let mut arguments = vec!["train", "config.toml"];
    let part = [&length[..], &["run.dir='part'", "parallel.zero=3"]].concat();
    part.iter().for_each(|over| arguments.extend(["--set", over]));
    let mut job = program.mpirun(2, &arguments).spawn().expect("mpirun starts");
    wait_for(&program.path("part/checkpoints/step-00000010"));
    let ranks = [rank_pid(job.id(), 0), rank_pid(job.id(), 1)];
    job.kill().expect("a job that still runs, or has just ended");
    job.wait().expect("a job");
    // Ranks end when they see that mpirun is gone, and hold the run's lock until then.
    ranks.into_iter().for_each(wait_for_end);
    let resumed = ["run.dir='part'", "checkpoint.resume=true", "parallel.zero=1"];
    program.train(3, &[&length[..], &resumed].concat());
    assert_eq!(program.hash("part", 40), program.hash("whole", 40));
    assert_eq!(program.losses("part"), program.losses("whole"));
}

#[test]
fn fast_sums_are_near_the_exact_ones() {
    let program = Program::new();
    program.train_in_threads(1, &["run.dir='exact'", UNEVEN]);
    let exact = program.losses("exact");
    for (ranks, zero, shard_degree) in [(2, 0, 0), (3, 1, 0), (4, 1, 2), (4, 3, 2)] {
        let dir = format!("run.dir='fast of {ranks} at {zero} by {shard_degree}'");
        let zero = format!("parallel.zero={zero}");
        let shard_degree = format!("parallel.shard_degree={shard_degree}");
        let fast = [&dir, UNEVEN, &zero, &shard_degree, "parallel.reduction=fast", NO_THRESHOLD];
        program.train_in_threads(ranks, &fast);
        let run = dir.trim_start_matches("run.dir='").trim_end_matches('\'');
        for ((step, loss), (_, expected)) in program.losses(run).into_iter().zip(&exact) {
            let error = (loss - expected).abs() / expected;
            assert!(error < SAME_LOSS, "{run} step {step}: {loss}, not {expected}");
        }
    }
}

/// The toy's parameters by unit, each with its padding: a multiple of 256 a rank.
fn padded_numels(ranks: u64) -> Vec<u64> {
    let pad = |numel: u64, to: u64| numel.next_multiple_of(to);
    let (d, f, v) = (32, 48, 256);
    // q, k, v, o with half as many kv heads; gate, up, down; the two norms are short.
    let matrices = [d * d, d * d / 2, d * d / 2, d * d, d * f, d * f, d * f];
    let block = matrices.iter().map(|&numel| pad(numel, 256)).sum::<u64>() + 2 * 256;
    let units = [v * d, block, block, 256 + v * d];
    units.iter().map(|&numel| pad(numel, ranks * 256)).collect()
}

/// Elements by operation that the last step moved.
fn traffic(program: &Program, run: &str) -> BTreeMap<String, u64> {
    let records = program.step_records(run);
    let last = records.last().expect("a step");
    let operations = last["communication"]["operations"].as_object().expect("operations").clone();
    let number = |count: &Value| count["elements"].as_u64().expect("a number");
    operations.iter().map(|(name, count)| (name.clone(), number(count))).collect()
}

#[test]
fn traffic_is_what_the_stages_promise() {
    let program = Program::new();
    for micro_steps in [1, 3] {
        for zero in 0..=3u64 {
            let dir = format!("run.dir='{micro_steps} at {zero}'");
            let micro_batches = format!("batch.micro_batches={}", 2 * micro_steps);
            let stage = format!("parallel.zero={zero}");
            let overrides =
                [dir.as_str(), &micro_batches, &stage, NO_THRESHOLD, "run.steps=3", "eval.every=0"];
            program.train_in_threads(2, &overrides);
            let moved = traffic(&program, &format!("{micro_steps} at {zero}"));
            let units = padded_numels(2);
            let all: u64 = units.iter().sum();
            let blocks = units[1] + units[2];
            assert_eq!(moved["ordered_reduce_scatter"], micro_steps * all, "stage {zero}");
            // Stage 3: each block for its forward and for its backward; the embedding's backward
            // reads no weight, and the head goes forward and backward at once.
            let gathered = if zero == 3 { micro_steps * (all + blocks) } else { all };
            assert_eq!(moved["all_gather"], gathered, "stage {zero}, {micro_steps} micro-steps");
        }
    }
}

#[test]
fn fast_traffic_does_not_grow_with_micro_steps() {
    let program = Program::new();
    let all: u64 = padded_numels(2).iter().sum();
    for zero in [0, 1] {
        let dir = format!("run.dir='{zero}'");
        let stage = format!("parallel.zero={zero}");
        let more = ["batch.micro_batches=6", "run.steps=3", "eval.every=0"];
        let fast = [&[dir.as_str(), &stage, "parallel.reduction=fast"][..], &more].concat();
        program.train_in_threads(2, &fast);
        let moved = traffic(&program, &zero.to_string());
        let of = |name: &str| moved.get(name).copied().unwrap_or(0);
        // An all-reduce moves what a reduce-scatter and an all-gather move, and a few numbers are
        // reduced beside.
        let numbers = if zero == 0 { of("all_reduce") - all } else { of("all_reduce") };
        assert!(numbers < 1000, "stage {zero}: {moved:?}");
        assert_eq!((of("reduce_scatter"), of("all_gather")), (zero * all, zero * all));
    }
}

#[test]
fn model_state_takes_the_bytes_of_the_formulas() {
    // Alignment to 256 elements costs most in a model as small as this one.
    const PADDING: f64 = 0.05;
    let program = Program::new();
    let model = ["model.hidden_size=128", "model.intermediate_size=352", "precision=bf16"];
    for ranks in [1usize, 2, 4] {
        for zero in 0..=3 {
            let dir = format!("run.dir='of {ranks} at {zero}'");
            let stage = format!("parallel.zero={zero}");
            let short = ["run.steps=2", "eval.every=0", NO_THRESHOLD];
            program
                .train_in_threads(ranks, &[&[dir.as_str(), &stage][..], &model, &short].concat());
            let records = program.step_records(&format!("of {ranks} at {zero}"));
            let memory = &records.last().expect("a step")["memory_bytes"];
            let bytes = |name: &str| memory[name].as_u64().expect("a number") as f64;
            let (shard, n) = (|from| if zero >= from { ranks as f64 } else { 1.0 }, NUM_PARAMETERS);
            let close = |name: &str, expected: f64| {
                let found = bytes(name);
                let error = (found - expected).abs() / expected;
                assert!(error < PADDING, "{ranks} at {zero}: {name} {found}, not {expected}");
            };
            close("parameters", 2.0 * n / shard(3));
            close("masters", 4.0 * n / shard(1));
            close("optimizer_state", 8.0 * n / shard(1));
            // Exact sums need no whole accumulators at stage 1, so it has those of stage 2.
            close("gradients", 4.0 * n / shard(1));
        }
    }
}

#[test]
fn fast_sums_keep_whole_accumulators_up_to_stage_1() {
    let program = Program::new();
    for (zero, shard) in [(0, 1), (1, 1), (2, 2), (3, 2)] {
        let dir = format!("run.dir='{zero}'");
        let stage = format!("parallel.zero={zero}");
        let fast = [dir.as_str(), &stage, "parallel.reduction=fast", NO_THRESHOLD, "run.steps=2"];
        program.train_in_threads(2, &fast);
        let records = program.step_records(&zero.to_string());
        let found = records.last().expect("a step")["memory_bytes"]["gradients"].as_u64();
        let expected = 4 * padded_numels(2).iter().sum::<u64>() / shard;
        assert_eq!(found, Some(expected), "stage {zero}");
    }
}

/// Of the model of [`model_state_takes_the_bytes_of_the_formulas`]: two tables, and two blocks of
/// attention (half as many kv heads), MLP and norms.
const NUM_PARAMETERS: f64 =
    (2 * 256 * 128 + 2 * (3 * 128 * 128 + 3 * 128 * 352 + 2 * 128) + 128) as f64;
