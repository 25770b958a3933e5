//! What the program says, above all about input that it cannot use.

use std::fs;

use crate::program::Program;

/// Runs a training that must be refused, and checks that the reason names each of `words`.
fn refused(program: &Program, overrides: &[&str], words: &[&str]) {
    let mut arguments = vec!["train", "config.toml"];
    for over in overrides {
        arguments.extend(["--set", over]);
    }
    let said = program.fail(&arguments);
    for word in words {
        assert!(said.contains(word), "{overrides:?} should name {word}:\n{said}");
    }
}

fn with_tokens(program: &Program) -> Vec<u8> {
    program.succeed(&["tokenize", "text.txt", "data.tokens"]);
    let config = fs::read_to_string(program.path("config.toml")).expect("a config");
    let config = config.replace("text = \"text.txt\"", "tokens = \"data.tokens\"");
    fs::write(program.path("config.toml"), config).expect("a config");
    fs::read(program.path("data.tokens")).expect("a token file")
}

#[test]
fn bad_token_files_are_named() {
    let program = Program::new();
    let good = with_tokens(&program);
    let path = program.path("data.tokens");
    let mut foreign = good.clone();
    foreign[..4].copy_from_slice(b"RIFF");
    for (bytes, words) in [
        (Vec::new(), ["data.tokens", "empty"]),
        (good[..good.len() - 10].to_vec(), ["data.tokens", "byte"]),
        (good[..20].to_vec(), ["data.tokens", "20"]),
        (foreign, ["data.tokens", "magic"]),
    ] {
        fs::write(&path, bytes).expect("a token file");
        refused(&program, &[], &words);
    }
    fs::remove_file(&path).expect("a token file");
    refused(&program, &[], &["data.tokens", "No such file"]);
}

#[test]
fn a_vocabulary_that_does_not_fit_is_named() {
    let program = Program::new();
    refused(&program, &["model.vocab_size=100"], &["bytes", "256", "vocab_size = 100"]);
    with_tokens(&program);
    let config = fs::read_to_string(program.path("config.toml")).expect("a config");
    let config = config.replace("tokenizer = \"bytes\"\n", "");
    fs::write(program.path("config.toml"), config).expect("a config");
    refused(&program, &["model.vocab_size=100"], &["data.tokens", "256", "vocab_size = 100"]);
}

#[test]
fn bad_configs_are_named() {
    let program = Program::new();
    for (over, words) in [
        ("optim.lerning_rate=1", &["optim.lerning_rate", "did you mean"][..]),
        ("optim.lr='fast'", &["optim.lr", "fast"]),
        ("model.num_attention_heads=5", &["num_attention_heads", "hidden_size = 32"]),
        ("model.num_key_value_heads=3", &["num_key_value_heads", "num_attention_heads = 4"]),
        ("model.head_dim=7", &["head_dim", "even"]),
        ("parallel.zero=4", &["parallel.zero", "ZeRO stage"]),
        ("run.steps=0", &["run.steps"]),
    ] {
        refused(&program, &[over], words);
    }
}

#[test]
fn cuda_where_there_is_none_is_named() {
    if std::path::Path::new("/proc/driver/nvidia/version").exists() {
        eprintln!("skipped: this host has NVIDIA's driver");
        return;
    }
    refused(
        &Program::new(),
        &["device='cuda'"],
        &["device = \"cuda\"", "libtorch", "scripts/setup"],
    );
}

#[test]
fn a_rank_count_that_cannot_work_is_named_once() {
    let program = Program::new();
    let arguments = ["train", "config.toml", "--set", "batch.micro_batches=2"];
    let output = program.mpirun(3, &arguments).output().expect("mpirun starts");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        said.matches("batch.micro_batches = 2 is fewer than the 3 ranks").count(),
        1,
        "{said}"
    );
}

#[test]
fn a_run_folder_in_use_is_not_overwritten() {
    let program = Program::new();
    program.train(1, &["run.steps=3"]);
    refused(&program, &["run.steps=3"], &["already holds a run", "step 3", "--resume"]);
    let resume = ["run.steps=3", "checkpoint.resume=true", "optim.lr=1.0"];
    refused(&program, &resume, &["another meaning", "optim.lr"]);
    let resume = ["run.steps=3", "checkpoint.resume=true", "model.hidden_size=64"];
    refused(&program, &resume, &["another meaning", "model.hidden_size"]);
    fs::write(program.path("text.txt"), "other words ".repeat(400)).expect("a text");
    refused(&program, &["run.steps=3", "checkpoint.resume=true"], &["not the data"]);
}

#[test]
fn a_diverging_run_stops_before_it_updates() {
    let program = Program::new();
    refused(&program, &["optim.lr=1e30", "optim.clip_norm=0"], &["step ", "optim.lr"]);
}

#[test]
fn a_trained_model_can_be_evaluated_and_sampled() {
    let program = Program::new();
    let said = program.train(1, &["run.steps=30", "sample.tokens=20", "sample.prompt='line '"]);
    assert!(said.contains("a sample:\nline "), "{said}");
    program.succeed(&["tokenize", "text.txt", "all.tokens"]);
    let said = program.succeed(&["eval", "run", "all.tokens"]);
    assert!(said.contains("bits per byte"), "{said}");
    let sample = ["sample", "run", "--prompt", "line ", "--tokens", "10", "--temperature", "0"];
    let text = program.succeed(&sample);
    assert!(text.starts_with("line "), "{text}");
    assert_eq!(program.succeed(&sample), text, "without temperature nothing is random");
}

#[test]
fn a_plan_prints_every_number() {
    let program = Program::new();
    let plan = program.succeed(&["plan", "config.toml", "--set", "optim.lr=0.5"]);
    for line in ["lr = 0.5", "tokens_per_step = 128", "eps = 0.00000001"] {
        assert!(plan.contains(line), "{line} is not in\n{plan}");
    }
}
