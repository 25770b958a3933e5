//! `extends`, overrides, and where paths lead.

use std::path::PathBuf;

use super::super::{DataSource, Rule, Schedule, StateDtype, Tokenizer};
use super::{Folder, LLAMA, plan};
use crate::model::config::ModelConfig;

#[test]
fn later_layers_replace_single_keys() {
    let folder = Folder::new(&[
        ("lowest.toml", LLAMA),
        (
            "deep/middle.toml",
            "extends = \"../lowest.toml\"\n[optim]\nlr = 1\nweight_decay = 0.25\n",
        ),
        ("top.toml", "extends = \"deep/middle.toml\"\nseed = 7\n[optim]\nlr = 2\n"),
    ]);
    let plan = folder.load("top.toml", &["optim.clip_norm=0", "run.steps=5"]).unwrap();
    assert_eq!((plan.seed, plan.run.steps), (7, 5));
    assert_eq!((plan.optim.lr, plan.optim.weight_decay, plan.optim.clip_norm), (2.0, 0.25, 0.0));
    assert_eq!(plan.run.dir, PathBuf::from("runs/top"));
    let last_wins = folder.load("top.toml", &["seed=8", "seed=9"]).unwrap();
    assert_eq!(last_wins.seed, 9);
}

#[test]
fn overrides_take_toml_and_bare_words() {
    let plan = plan(
        LLAMA,
        &[
            "optim.betas = [0.5, 0.75]",
            "data.text=some file.txt",
            "data.tokenizer = \"bytes\"",
            "run.dir=2024-01-01",
            "sample.tokens=3",
            "sample.prompt=5",
            "precision=fp64",
            "checkpoint={every=4, keep_last=3}",
        ],
    );
    assert_eq!(
        plan.optim.rule,
        Rule::AdamW { betas: [0.5, 0.75], eps: 1e-8, state_dtype: StateDtype::Master }
    );
    assert_eq!(plan.data.source, DataSource::Text("some file.txt".into()));
    assert_eq!(plan.run.dir, PathBuf::from("2024-01-01"));
    assert_eq!(plan.sample.unwrap().prompt, "5");
    assert_eq!((plan.checkpoint.every, plan.checkpoint.keep_last), (4, 3));
}

#[test]
fn what_a_higher_layer_makes_pointless_goes() {
    let text = format!(
        "{LLAMA}[optim]\nlr = 0.5\neps = 1e-3\n[schedule]\nkind = \"wsd\"\ncooldown_fraction = 0.5\n"
    );
    let lion = plan(&text, &["optim.rule=lion", "schedule.kind=constant"]);
    assert_eq!(
        lion.optim.rule,
        Rule::Lion { betas: [0.95, 0.98], state_dtype: StateDtype::Master }
    );
    // The learning rate keeps its effect, so it stays.
    assert_eq!(lion.optim.lr, 0.5);
    assert_eq!(lion.schedule.shape, Schedule::Constant { warmup_steps: 0 });
    let text = text.replace("[data]", "[data]\nvalidation_fraction = 0.5\ntokenizer = \"bytes\"");
    let other = plan(&text, &["data.text=b.txt", "data.validation_tokens=c"]);
    assert_eq!(other.data.source, DataSource::Text("b.txt".into()));
    let gpt2 = ["model.model_type=gpt2", "model.n_embd=8", "model.n_layer=1", "model.n_head=1"];
    assert!(matches!(plan(&text, &gpt2).model, ModelConfig::Gpt2(_)));
}

#[test]
fn input_paths_fall_back_to_the_folder_of_the_file_that_wrote_them() {
    let folder = Folder::new(&[
        ("deep/lowest.toml", &LLAMA.replace("[data]", "[data]\ntokenizer = \"t.json\"")),
        ("deep/a.tokens", ""),
        ("t.json", ""),
        ("top.toml", "extends = \"deep/lowest.toml\"\n"),
    ]);
    let data = folder.load("top.toml", &[]).unwrap().data;
    // a.tokens is beside the file that names it; t.json is beside another one only.
    assert_eq!(data.source, DataSource::Tokens(folder.path("deep/a.tokens")));
    assert_eq!(data.tokenizer, Some(Tokenizer::File("t.json".into())));
    let set = folder.load("top.toml", &["data.tokens=a.tokens"]).unwrap().data;
    assert_eq!(set.source, DataSource::Tokens("a.tokens".into()));
    // A path from the current directory, which is that of the crate's manifest, comes first.
    let both = LLAMA.replace("a.tokens", "Cargo.toml");
    let folder = Folder::new(&[("x.toml", &both), ("Cargo.toml", "")]);
    let here = folder.load("x.toml", &[]).unwrap().data;
    assert_eq!(here.source, DataSource::Tokens("Cargo.toml".into()));
}
