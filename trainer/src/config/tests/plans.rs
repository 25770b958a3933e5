//! Resolved plans: derived numbers, ranks, printing, and what a resume may change.

use super::super::{Group, Meaning, Plan, Schedule, how_to_allow};
use super::{Folder, GPT2, LLAMA, configs, plan};
use crate::model::config::ModelConfig;

#[test]
fn derived_numbers_are_the_hand_derived_ones() {
    let plan = plan(LLAMA, &["schedule.kind=wsd", "model.num_key_value_heads=2"]);
    assert_eq!(plan.derived.tokens_per_step, 32 * 2 * 4);
    assert_eq!(plan.derived.total_tokens, 25_600);
    // A block: q and o 64 x 64, k and v 64 x 32, three 64 x 176, two norms of 64.
    let matrices = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176;
    assert_eq!(plan.derived.num_parameters, 2 * (matrices + 128) + 2 * 256 * 64 + 64);
    assert_eq!(plan.derived.flops_per_token, 6 * (2 * matrices + 256 * 64) + 6 * 2 * 32 * 64);
    assert_eq!(plan.derived.cooldown_steps, 20);
    assert_eq!(
        plan.schedule.shape,
        Schedule::Wsd { warmup_steps: 0, final_ratio: 0.0, cooldown_fraction: 0.2 }
    );
    assert_eq!(plan.schedule.shape.warmup_steps(), 0);
}

#[test]
fn a_cooldown_takes_at_least_a_step() {
    // 0.004 * 100 rounds to 0.
    let sets = ["schedule.kind=wsd", "schedule.cooldown_fraction=0.004"];
    assert_eq!(plan(LLAMA, &sets).derived.cooldown_steps, 1);
    assert_eq!(plan(LLAMA, &["schedule.kind=constant"]).derived.cooldown_steps, 0);
}

#[test]
fn logits_rows_are_chosen_within_their_bytes() {
    assert_eq!(plan(LLAMA, &[]).memory.logits_rows, 64);
    let sets = ["model.vocab_size=50257", "batch.micro_batch_size=1024"];
    assert_eq!(plan(LLAMA, &sets).memory.logits_rows, 512);
    assert_eq!(plan(LLAMA, &["memory.logits_rows=5"]).memory.logits_rows, 5);
}

#[test]
fn groups_are_those_that_the_model_has() {
    let groups = |text: &str, sets: &[&str]| -> Vec<Group> {
        plan(text, sets).optim.groups.into_keys().collect()
    };
    use Group::{Bias, Embedding, Head, Matrix, Norm};
    assert_eq!(groups(LLAMA, &[]), [Matrix, Embedding, Norm, Head]);
    assert_eq!(groups(LLAMA, &["model.tie_word_embeddings=true"]), [Matrix, Embedding, Norm]);
    assert_eq!(groups(GPT2, &[]), [Matrix, Embedding, Norm, Bias]);
    let decays = plan(GPT2, &[]).optim.groups;
    let decays: Vec<f64> =
        decays.values().map(|group| group.weight_decay_multiplier.unwrap()).collect();
    assert_eq!(decays, [1.0, 1.0, 0.0, 0.0]);
}

#[test]
fn every_rank_must_have_work_and_a_place_in_a_shard_group() {
    let even = plan(LLAMA, &[]);
    for ranks in [1, 2, 3, 4] {
        assert_eq!(even.check_ranks(ranks), Ok(()));
    }
    assert_eq!(
        even.check_ranks(5).unwrap_err().to_string(),
        "batch.micro_batches = 4 is fewer than the 5 ranks, so that some would have no work; use at \
         most 4 ranks, or set batch.micro_batches to 5 or more (a multiple of the ranks wastes \
         nothing)"
    );
    let pairs = plan(LLAMA, &["parallel.zero=2", "parallel.shard_degree=2"]);
    assert_eq!(pairs.check_ranks(4), Ok(()));
    assert_eq!(
        pairs.check_ranks(3).unwrap_err().to_string(),
        "parallel.shard_degree = 2 does not divide the 3 ranks; use 1 or 3, or 0 for all ranks"
    );
    let graphs = plan(LLAMA, &["gpu.graphs=true", "device=cuda"]);
    assert_eq!(graphs.check_ranks(1), Ok(()));
    assert_eq!(
        graphs.check_ranks(2).unwrap_err().to_string(),
        "gpu.graphs = true records micro-steps without calls between ranks, found 2 ranks; use \
         gpu.graphs = false, or one rank"
    );
}

#[test]
fn a_printed_plan_is_read_back_and_is_itself_a_configuration() {
    let files = std::fs::read_dir(configs()).unwrap().map(|entry| entry.unwrap().path());
    let plans = files.map(|file| super::load(&file, &[]).unwrap());
    let more = [
        plan(GPT2, &["optim.rule=lion", "optim.weight_decay=0", "schedule.kind=linear"]),
        plan(LLAMA, &["sample.tokens=3", "sample.temperature=0", "data.tokenizer=bytes"]),
        plan(LLAMA, &["schedule.kind=wsd", "data.validation_tokens=v", "run.dir=r"]),
    ];
    for plan in plans.chain(more) {
        let text = plan.to_toml();
        assert_eq!(Plan::from_toml(&text).unwrap(), plan, "{text}");
        let without_derived = text.split("[derived]").next().unwrap();
        assert_eq!(super::plan(without_derived, &[]), plan, "{text}");
    }
    let message = Plan::from_toml("seed = 1").unwrap_err().to_string();
    assert!(message.starts_with("saved plan: missing field `precision`"), "{message}");
}

#[test]
fn every_configuration_resolves_to_the_size_it_claims() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(configs()).unwrap() {
        let file = entry.unwrap().path();
        let plan = super::load(&file, &[]).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        names.push((
            file.file_stem().unwrap().to_str().unwrap().to_owned(),
            plan.derived.num_parameters,
        ));
    }
    names.sort();
    let expected = [
        ("debug", 125_248),
        ("enwik8-10m", 10_818_432),
        ("gpt2-124m", 124_439_808),
        ("llama-1b", 1_235_814_400),
        ("llama-34m", 34_087_424),
        ("llama-8b", 8_030_261_248),
        ("reference", 34_087_424),
        ("shakespeare", 3_295_488),
    ];
    assert_eq!(names, expected.map(|(name, size)| (name.to_owned(), size)));
}

#[test]
fn debug_finds_its_text_beside_itself() {
    let plan = super::load(&configs().join("debug.toml"), &[]).unwrap();
    let super::super::DataSource::Text(text) = plan.data.source else { panic!("not text") };
    assert_eq!(text, configs().join("reference.toml"));
}

#[test]
fn harmless_changes_may_be_resumed_over_and_others_are_named() {
    let fraction = "data.validation_fraction=0.1";
    let before = plan(LLAMA, &[fraction]);
    let harmless = plan(
        LLAMA,
        &[
            fraction,
            "device=cpu",
            "run.dir=elsewhere",
            "parallel.threads=3",
            "memory.recompute=block",
            "eval.every=3",
            "checkpoint.resume=true",
            "metrics.log_every=1",
            "data.tokenizer=bytes",
            "sample.tokens=4",
        ],
    );
    assert_eq!(before.meaning_changes(&harmless, 0), []);
    let meaning = plan(
        LLAMA,
        &[
            "seed=2",
            "optim.lr=1",
            "run.steps=7",
            "model.head_dim=8",
            "optim.rule=lion",
            "batch.micro_batches=2",
        ],
    );
    let changes = before.meaning_changes(&meaning, 0);
    assert_eq!(
        changes.iter().map(|change| change.text.as_str()).collect::<Vec<_>>(),
        [
            "batch.micro_batches: 4 -> 2",
            "data.validation_fraction: 0.1 -> not set",
            "model.head_dim: 16 -> 8",
            "optim.betas: [0.9, 0.95] -> [0.95, 0.98]",
            "optim.eps: 1e-8 -> not set",
            "optim.lr: 0.0003 -> 1.0",
            "optim.rule: \"adamw\" -> \"lion\"",
            "optim.weight_decay: 0.1 -> 0.3",
            "run.steps: 100 -> 7",
            "seed: 1 -> 2",
        ]
    );
    assert_eq!(
        how_to_allow(changes.iter().map(|change| change.meaning)),
        "--set 'checkpoint.allow_changes=[\"seed\", \"model\", \"data\", \"batch\", \"optim\", \
         \"schedule\"]'"
    );
}

#[test]
fn a_constant_schedule_may_go_on_for_longer() {
    let constant = |steps| plan(LLAMA, &["schedule.kind=constant", steps]);
    let (short, long) = (constant("run.steps=10"), constant("run.steps=20"));
    assert!(short.meaning_changes(&long, 0).is_empty());
    let cosine = plan(LLAMA, &["run.steps=20"]);
    let changes = short.meaning_changes(&cosine, 0);
    let steps = changes.iter().find(|change| change.text == "run.steps: 10 -> 20");
    assert_eq!(steps.map(|change| change.meaning), Some(Meaning::Schedule));
}

#[test]
fn overrides_reach_an_extended_model() {
    let folder = Folder::new(&[("x.toml", GPT2)]);
    let plan = folder.load("x.toml", &["model.n_inner=100"]).unwrap();
    let ModelConfig::Gpt2(model) = plan.model else { panic!("not a GPT-2") };
    assert_eq!((model.n_inner, model.n_positions), (100, 32));
}
