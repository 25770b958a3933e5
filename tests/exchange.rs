//! Models in and out, and `grove ckpt`, by the program: folders that transformers wrote and a GGUF
//! file, as `scripts/fixtures_exchange.py` made them, give the same logits, text and training here.

use std::fs;
use std::path::{Path, PathBuf};

use grove::exchange::Source;
use grove::loaded::LoadedModel;
use grove::model::compute::Compute;
use grove::pass::logits;
use grove::sample::{Sampling, continue_tokens};
use grove::signals::StopRequest;
use grove_data::Tokenizer;
use grove_parallel::LocalCollective;
use safetensors::SafeTensors;
use tch::{Device, Kind, Tensor};

use crate::fixture::relative_error;
use crate::program::Program;

/// Our float32 against transformers in float64, over the largest logit: rounding of two blocks,
/// and float32 rotary angles there.
const TOLERANCE: f64 = 1e-5;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/exchange").join(name)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A stored tensor, and the text in the metadata.
fn expected(name: &str) -> (Tensor, String) {
    let bytes = fs::read(fixture("expected.safetensors")).expect("the fixtures are committed");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
    let text = metadata.metadata().as_ref().expect("metadata")["text"].clone();
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let view = file.tensor(name).unwrap_or_else(|_| panic!("the fixture has {name}"));
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    let kind = match view.dtype() {
        safetensors::Dtype::F64 => Kind::Double,
        safetensors::Dtype::F32 => Kind::Float,
        safetensors::Dtype::I64 => Kind::Int64,
        other => panic!("{name} is {other:?}"),
    };
    (Tensor::from_data_size(view.data(), &shape, kind), text)
}

/// Compares a folder's logits and greedy text with what transformers makes of the model.
fn check_answers(folder: &Path, name: &str) {
    let _no_graph = tch::no_grad_guard();
    let compute = Compute::new(Device::Cpu, Kind::Float, 2);
    let model = LoadedModel::open(folder, &compute).expect("a model");
    let alone = LocalCollective::new();
    let mut traffic = model.traffic(&alone).expect("one rank");
    let (tokens, _) = expected("tokens");
    let found = logits(model.layers(&compute), (&tokens, None), &mut traffic).expect("one rank");
    let (wanted, _) = expected(&format!("{name}.logits"));
    let error = relative_error(&found.reshape(wanted.size()), &wanted);
    eprintln!("{name}: logits are off by {error:.1e}");
    assert!(error < TOLERANCE, "{name}: logits are off by {error:e}");

    let greedy = Vec::<i64>::try_from(expected(&format!("{name}.greedy")).0).expect("ids");
    let greedy: Vec<u32> = greedy.into_iter().map(|id| id as u32).collect();
    let spec = &model.decoder.spec;
    let sampling = Sampling {
        num_tokens: 16,
        vocab_size: spec.vocab_size as u32,
        temperature: 0.0,
        top_k: 0,
        seed: 1,
    };
    let (layers, how) = (model.layers(&compute), (&sampling, &StopRequest::never()));
    let text = continue_tokens(layers, &greedy[..8], spec.max_positions, how, &mut traffic);
    assert_eq!(text.expect("one rank"), greedy, "{name}");
}

#[test]
fn what_transformers_wrote_is_imported_and_answers_alike() {
    let program = Program::new();
    for (name, source) in [("llama", "llama"), ("gpt2", "gpt2"), ("gguf", "llama.gguf")] {
        let said = program.succeed(&["import", &shown(&fixture(source)), name]);
        assert!(said.contains("parameters in F32"), "{said}");
        let verified = program.succeed(&["ckpt", "verify", name]);
        assert_eq!(verified, format!("{name}: whole\n"));
        check_answers(&program.path(name), name);
        let said = program.fail(&["import", &shown(&fixture(source)), name]);
        assert!(said.contains("is already there"), "{said}");
    }
    let show = program.succeed(&["ckpt", "show", "gpt2", "--tensors"]);
    for words in ["step 0,", "gpt2, ", "none, the model was imported", "F32 [288, 24]"] {
        assert!(show.contains(words), "{words} is not in\n{show}");
    }
    let generation = fs::read_to_string(program.path("gpt2/generation_config.json"));
    assert!(generation.expect("made from config.json").contains("\"eos_token_id\": 0"));
}

#[test]
fn a_gguf_file_gives_what_its_own_library_decodes() {
    let source = Source::open(&fixture("llama.gguf")).expect("a model");
    let record = source.tensor("model.layers.0.self_attn.q_proj.weight").expect("a matrix");
    let found = Tensor::from_data_size(&record.bytes, &[32, 32], Kind::Float);
    assert_eq!(found, expected("gguf.q_proj").0, "decoded and in our order of rows");

    let program = Program::new();
    program.succeed(&["import", &shown(&fixture("llama.gguf")), "model"]);
    let tokenizer = Tokenizer::from_spec(&shown(&program.path("model"))).expect("a tokenizer");
    let (ids, text) = expected("gguf.text_ids");
    let ids: Vec<u32> =
        Vec::<i64>::try_from(ids).expect("ids").into_iter().map(|id| id as u32).collect();
    assert_eq!(tokenizer.encode(&text).expect("ids"), ids);
}

#[test]
fn an_export_is_the_model_again() {
    let program = Program::new();
    program.succeed(&["import", &shown(&fixture("llama")), "model"]);
    let export = ["export", "model", "exact", "--dtype", "fp32", "--max-shard-bytes", "40000"];
    program.succeed(&export);
    let shards: Vec<_> = fs::read_dir(program.path("exact"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    assert!(shards.len() > 2, "{shards:?}");
    let [source, back] =
        [fixture("llama"), program.path("exact")].map(|path| Source::open(&path).expect("a model"));
    assert_eq!(source.config, back.config);
    for spec in source.specs() {
        let [a, b] = [&source, &back].map(|model| model.tensor(&spec.name).expect("a parameter"));
        assert_eq!((a.spec, a.bytes), (b.spec, b.bytes));
    }
    assert!(program.path("exact/generation_config.json").exists());

    // Half the bytes, and the nearest numbers: relative distance at most 2^-8.
    program.succeed(&["export", "model", "rounded", "--dtype", "bf16"]);
    let rounded = Source::open(&program.path("rounded")).expect("a model");
    for spec in source.specs() {
        let exact = source.tensor(&spec.name).expect("a parameter");
        let near = rounded.tensor(&spec.name).expect("a parameter");
        for (exact, near) in exact.bytes.chunks_exact(4).zip(near.bytes.chunks_exact(2)) {
            let exact = f32::from_le_bytes(exact.try_into().expect("4 bytes"));
            let near = half::bf16::from_le_bytes(near.try_into().expect("2 bytes"));
            assert_eq!(near, half::bf16::from_f32(exact));
        }
    }
}

#[test]
fn a_run_starts_from_the_weights_of_another_model() {
    let program = Program::new();
    let config = fs::read_to_string(program.path("config.toml")).expect("a config");
    let model = "vocab_size = 288\nhidden_size = 32\nintermediate_size = 64\n\
                 max_position_embeddings = 16\nrms_norm_eps = 1e-5\nrope_theta = 500.0\n";
    let old = "vocab_size = 256\nhidden_size = 32\nintermediate_size = 48\n";
    fs::write(program.path("config.toml"), config.replace(old, model)).expect("a config");
    program.succeed(&["import", &shown(&fixture("llama")), "model"]);
    let frozen = ["run.steps=1", "optim.lr=1e-30", "schedule.warmup_steps=0"];
    let from = |path: &Path| format!("init.from={:?}", shown(path));

    // A step too short to change a number, so that what is saved is what was read: from each form, at each stage.
    for (run, path, ranks, zero) in [
        ("a", fixture("llama"), 1, "parallel.zero=0"),
        ("b", program.path("model"), 2, "parallel.zero=3"),
    ] {
        let (dir, from) = (format!("run.dir={run}"), from(&path));
        program.train(ranks, &[&frozen[..], &[&dir, &from, zero]].concat());
        assert_eq!(program.hash(run, 1), program.hash_of("model"), "{run}");
    }
    let (dir, from_run) = ("run.dir=c", from(&program.path("a")));
    program.train(1, &["run.steps=20", dir, &from_run]);
    let losses = program.losses("c");
    assert!(losses[19].1 < losses[0].1 - 0.5, "it learns: {losses:?}");

    let other = ["run.dir=d", "model.rope_theta=100.0", "model.intermediate_size=48", &from_run];
    let mut arguments = vec!["train", "config.toml"];
    other.iter().for_each(|over| arguments.extend(["--set", over]));
    let said = program.fail(&arguments);
    for words in ["model.intermediate_size: 64, here 48", "model.rope_theta: 500.0, here 100.0"] {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }
}

#[test]
fn checkpoints_are_listed_verified_compared_and_pruned() {
    let program = Program::new();
    program.train(1, &["run.steps=8", "checkpoint.every=2", "checkpoint.keep_last=9"]);
    let listed = program.succeed(&["ckpt", "ls", "run"]);
    assert_eq!(listed.lines().count(), 5, "{listed}");
    assert!(listed.lines().last().expect("a line").ends_with("whole, latest"), "{listed}");
    assert_eq!(program.succeed(&["ckpt", "verify", "run"]).matches(": whole").count(), 4);
    let shown = program.succeed(&["ckpt", "show", "run"]);
    for words in ["step 8, 1024 tokens", "optim.rule = \"adamw\"", "exp_avg: "] {
        assert!(shown.contains(words), "{words} is not in\n{shown}");
    }
    let folder = |step: u64| format!("run/checkpoints/step-{step:08}");
    let compared = program.succeed(&["ckpt", "diff", &folder(6), &folder(8)]);
    assert!(compared.contains("step: 6 -> 8"), "{compared}");
    assert!(compared.contains("lm_head.weight F32 [256, 32]: "), "{compared}");
    let same = program.succeed(&["ckpt", "diff", &folder(8), "run"]);
    assert!(same.starts_with("0 settings differ, 0 tensors differ"), "{same}");

    let prune = ["ckpt", "prune", "run", "--keep-last", "1", "--keep-every", "4"];
    let said = program.succeed(&[&prune[..], &["--dry-run"]].concat());
    assert!(said.ends_with("would remove 2 checkpoints\n"), "{said}");
    program.succeed(&prune);
    let listed = program.succeed(&["ckpt", "ls", "run"]);
    assert_eq!(listed.lines().count(), 3, "{listed}");

    let masters = program.path(&folder(4)).join("grove/masters.safetensors");
    let mut bytes = fs::read(&masters).expect("masters");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&masters, bytes).expect("masters");
    let output = program.command(&["ckpt", "verify", "run"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    let said = crate::program::stdout(&output);
    assert!(said.contains("step-00000004: damaged\n  grove/masters.safetensors has"), "{said}");
    assert!(said.contains("step-00000008: whole"), "{said}");
}
