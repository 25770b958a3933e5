//! Rules that need parameters whole: the same bits at every rank count, stage and shard degree;
//! resumed; state of the promised size, and owned by few.

use std::collections::BTreeMap;

use grove::checkpoint::Checkpoint;

use crate::program::Program;

/// Micro-batches of a step: 2, 3 and 4 ranks do not share them evenly.
const UNEVEN: &str = "batch.micro_batches=7";
/// Everything is sharded, however small.
const NO_THRESHOLD: &str = "parallel.keep_gathered_numel=0";

/// Every rule with what makes it do all it can within a few steps.
const RULES: [&[&str]; 8] = [
    &["optim.rule=adafactor"],
    &["optim.rule=adafactor", "optim.step_scale=plain", "optim.lr=1e-3"],
    &["optim.rule=came"],
    &["optim.rule=adam_mini"],
    &["optim.rule=muon", "optim.rest.lr=3e-3"],
    &["optim.rule=muon", "optim.scaling=original", "optim.nesterov=false"],
    &["optim.rule=galore", "optim.rank=4", "optim.refresh_every=3"],
    &["optim.rule=soap", "optim.refresh_every=2", "optim.max_basis_dim=40"],
];

const SHORT: [&str; 2] = ["run.steps=6", "eval.every=0"];

fn all_ways(program: &Program, precision: &str, rules: &[&[&str]]) {
    for rule in rules {
        let mut expected = None;
        let mut train = |ranks: usize, zero: usize, shard_degree: usize| {
            let run =
                format!("{precision} {} of {ranks} at {zero} by {shard_degree}", rule.join(" "));
            let run = run.replace('.', "-");
            let sharding = [
                format!("run.dir='{run}'"),
                format!("precision={precision}"),
                format!("parallel.zero={zero}"),
                format!("parallel.shard_degree={shard_degree}"),
            ];
            let sharding: Vec<&str> = sharding.iter().map(String::as_str).collect();
            let settings = [&sharding[..], rule, &SHORT, &[UNEVEN, NO_THRESHOLD]].concat();
            program.train_in_threads(ranks, &settings);
            let hash = program.hash(&run, 6);
            let expected = expected.get_or_insert_with(|| hash.clone());
            assert_eq!(&hash, expected, "{run}");
        };
        for ranks in 1..=4 {
            (0..=3).for_each(|zero| train(ranks, zero, 0));
        }
        (1..=3).for_each(|zero| train(4, zero, 2));
    }
}

#[test]
fn every_whole_rule_has_the_same_bits_in_every_way() {
    all_ways(&Program::new(), "fp32", &RULES);
}

#[test]
fn fused_matrices_and_rounded_copies_have_the_same_bits_in_every_way() {
    let program = Program::new();
    program.use_gpt2();
    all_ways(&program, "bf16", &[RULES[2], RULES[3], RULES[4]]);
}

#[test]
fn every_whole_rule_resumes_exactly_at_other_ranks_and_another_stage() {
    let program = Program::new();
    for rule in RULES {
        let run = |name: &str, ranks: usize, more: &[&str]| {
            let dir = format!("run.dir='{name}'");
            let settings = [
                &[dir.as_str(), UNEVEN, NO_THRESHOLD],
                rule,
                &SHORT,
                &["checkpoint.every=3"],
                more,
            ]
            .concat();
            program.train_in_threads(ranks, &settings);
        };
        let name = rule.join(" ").replace('.', "-");
        let (whole, part) = (format!("whole {name}"), format!("part {name}"));
        run(&whole, 1, &[]);
        run(&part, 3, &["parallel.zero=3"]);
        let last = program.path(&format!("{part}/checkpoints/step-00000006"));
        std::fs::remove_dir_all(last).expect("a checkpoint");
        run(&part, 2, &["parallel.zero=1", "checkpoint.resume=true"]);
        assert_eq!(program.hash(&part, 6), program.hash(&whole, 6), "{name}");
        assert_eq!(program.losses(&part), program.losses(&whole), "{name}");
    }
}

#[test]
fn a_process_of_mpi_ranks_has_the_bits_of_one() {
    let program = Program::new();
    let rule = ["optim.rule=muon", "run.steps=4", "eval.every=0", UNEVEN, NO_THRESHOLD];
    program.train(1, &[&rule[..], &["run.dir='one'"]].concat());
    for (ranks, zero, shard_degree) in [(2, "0", "0"), (4, "3", "2")] {
        let run = format!("of {ranks}");
        let dir = format!("run.dir='{run}'");
        let zero = format!("parallel.zero={zero}");
        let shard_degree = format!("parallel.shard_degree={shard_degree}");
        program.train(ranks, &[&rule[..], &[&dir, &zero, &shard_degree]].concat());
        assert_eq!(program.hash(&run, 4), program.hash("one", 4), "{run}");
    }
}

/// Bytes of optimizer state a parameter, summed over the ranks of a run.
fn state_bytes(program: &Program, ranks: usize, rule: &[&str]) -> f64 {
    let run = format!("bytes of {ranks} {}", rule.join(" ").replace('.', "-"));
    let dir = format!("run.dir='{run}'");
    let model = ["model.hidden_size=128", "model.intermediate_size=352", "run.steps=2"];
    let zero = ["parallel.zero=1", "eval.every=0"];
    program.train_in_threads(ranks, &[&[dir.as_str()][..], rule, &model, &zero].concat());
    let checkpoint = Checkpoint::open(&program.path(&format!("{run}/checkpoints/step-00000002")));
    let checkpoint = checkpoint.expect("a checkpoint");
    let numel = |file: &grove::checkpoint::TensorFile| -> usize {
        file.tensors().map(|tensor| tensor.bytes.len()).sum()
    };
    let stored = numel(checkpoint.optimizer()) as f64 / (numel(checkpoint.masters()) / 4) as f64;
    if ranks == 1 {
        let records = program.step_records(&run);
        let held = records[0]["memory_bytes"]["optimizer_state"].as_f64().expect("bytes");
        let held = held / (numel(checkpoint.masters()) / 4) as f64;
        // Flat states of the rest are padded.
        assert!((held - stored).abs() < 0.02, "{run}: {held} held, {stored} stored");
    }
    stored
}

#[test]
fn states_take_the_bytes_they_promise() {
    // Of 460 k parameters in short rows: rows and columns weigh more than in a model of use.
    let program = Program::new();
    let promised = BTreeMap::from([
        ("optim.rule=adamw", 8.0..8.001),
        ("optim.rule=lion", 4.0..4.001),
        ("optim.rule=adafactor", 0.0..0.1),
        ("optim.rule=came", 4.0..4.2),
        ("optim.rule=adam_mini", 4.0..4.1),
        // 8 for tables and norms, 4 for matrices.
        ("optim.rule=muon", 4.0..5.0),
    ]);
    for (rule, range) in promised {
        let (one, two) = (state_bytes(&program, 1, &[rule]), state_bytes(&program, 2, &[rule]));
        assert!(range.contains(&one), "{rule}: {one}");
        assert_eq!(one.to_bits(), two.to_bits(), "{rule}");
    }
}

#[test]
fn owners_share_states_and_work_at_every_stage() {
    let program = Program::new();
    let model = ["model.hidden_size=64", "model.intermediate_size=192", "run.steps=2"];
    for zero in 0..=3 {
        let run = |ranks: usize| {
            let dir = format!("run.dir='{zero} of {ranks}'");
            let zero = format!("parallel.zero={zero}");
            let muon = [dir.as_str(), &zero, "optim.rule=muon", "eval.every=0", NO_THRESHOLD];
            program.train_in_threads(ranks, &[&muon[..], &model].concat());
        };
        run(1);
        run(4);
        let held = |ranks: usize| {
            let records = program.step_records(&format!("{zero} of {ranks}"));
            records[0]["memory_bytes"]["optimizer_state"].as_f64().expect("bytes")
        };
        // 2 blocks of q, o 64 x 64, k, v 32 x 64, three 192 x 64; AdamW for two tables and norms.
        let (matrices, rest) = (4.0 * 2.0 * (12_288.0 + 36_864.0), 8.0 * (2.0 * 16_384.0 + 320.0));
        let rest_here = if zero == 0 { rest } else { rest / 4.0 };
        // Rank 0 has a fourth of the work; of the state that is within one large matrix.
        let expected = matrices / 4.0 + rest_here;
        let error = (held(4) - expected).abs();
        assert!(error < 4.0 * 12_288.0, "stage {zero}: {} bytes, not {expected}", held(4));
        assert!((held(1) - matrices - rest).abs() < 0.05 * held(1), "{} bytes", held(1));
        // Updates of the matrices of a block come back to every rank.
        let traveled = program.step_records(&format!("{zero} of 4"))[0]["memory_bytes"]["buffers"]
            .as_f64()
            .expect("bytes");
        assert!(traveled > matrices / 2.0, "stage {zero}: {traveled} bytes of buffers");
    }
}
