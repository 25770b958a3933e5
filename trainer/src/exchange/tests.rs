//! Input that cannot be used is refused by name, and numbers are decoded as they were meant.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use super::convert::convert;
use super::*;
use crate::checkpoint::Dtype;
use crate::model::config::{ModelConfig, Precision};

mod gguf;

fn config(tied: bool) -> ModelConfig {
    let config = json!({
        "model_type": "llama",
        "vocab_size": 3,
        "hidden_size": 2,
        "intermediate_size": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 4,
        "tie_word_embeddings": tied,
    });
    ModelConfig::from_hf_json(&config.to_string()).unwrap()
}

/// One tensor of a file: name, dtype, shape, values.
type Stored = (String, &'static str, Vec<usize>, Vec<u8>);

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Every parameter of the model, filled with ones.
fn parameters(tied: bool) -> Vec<Stored> {
    let specs = super::matching::parameters(Path::new("model"), &config(tied), 100).unwrap();
    let stored = specs.into_iter().map(|spec| {
        let numel = spec.shape.iter().product();
        (spec.name, "F32", spec.shape, f32s(&vec![1.0; numel]))
    });
    stored.collect()
}

fn write_tensors(path: &Path, tensors: &[Stored]) {
    let (mut header, mut values) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [values.len(), values.len() + bytes.len()];
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        header.insert(name.clone(), entry);
        values.extend(bytes);
    }
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, &values].concat()).unwrap();
}

/// A folder with a config and these tensors in one file.
fn folder(tied: bool, tensors: &[Stored]) -> TempDir {
    let folder = TempDir::new().unwrap();
    let text = config(tied).to_hf_json(Precision::Fp32);
    fs::write(folder.path().join("config.json"), text).unwrap();
    write_tensors(&folder.path().join("model.safetensors"), tensors);
    folder
}

fn refusal(path: &Path) -> String {
    Source::open(path).unwrap_err().to_string()
}

#[test]
fn all_tensors_that_do_not_fit_are_named_at_once() {
    let mut tensors = parameters(false);
    tensors.retain(|(name, ..)| !name.ends_with("up_proj.weight"));
    tensors.push(("model.layers.0.self_attn.q_proj.bias".to_owned(), "F32", vec![1], f32s(&[0.0])));
    let norm = tensors.iter_mut().find(|(name, ..)| name == "model.norm.weight").unwrap();
    (norm.2, norm.3) = (vec![1], f32s(&[1.0]));
    let said = refusal(folder(false, &tensors).path());
    for words in [
        "model.layers.0.mlp.up_proj.weight is missing (expected [2, 2])",
        "model.layers.0.self_attn.q_proj.bias is extra (F32 [1])",
        "model.norm.weight is F32 [1], expected numbers of shape [2]",
    ] {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }
}

#[test]
fn prefixes_and_buffers_of_other_versions_are_known() {
    let mut tensors = parameters(false);
    for (name, ..) in &mut tensors {
        *name = name.trim_start_matches("model.").to_owned();
    }
    let buffer = "layers.0.self_attn.rotary_emb.inv_freq".to_owned();
    tensors.push((buffer, "I64", vec![1], vec![0; 8]));
    let found = folder(false, &tensors);
    let source = Source::open(found.path()).unwrap();
    let expected = source.specs().iter().map(|spec| &spec.name);
    assert!(expected.clone().any(|name| name == "model.layers.0.mlp.up_proj.weight"));
    expected.for_each(|name| assert_eq!(source.tensor(name).unwrap().spec.name, *name));
}

#[test]
fn a_gpt2_without_biases_gets_those_that_change_nothing() {
    let text = json!({ "model_type": "gpt2", "vocab_size": 3, "n_positions": 4, "n_embd": 2,
        "n_layer": 1, "n_head": 1 })
    .to_string();
    let config = ModelConfig::from_hf_json(&text).unwrap();
    let specs = super::matching::parameters(Path::new("model"), &config, 100).unwrap();
    let stored = |spec: &crate::checkpoint::TensorSpec| {
        let ones = f32s(&vec![1.0; spec.shape.iter().product()]);
        (spec.name.clone(), "F32", spec.shape.clone(), ones)
    };
    let all: Vec<Stored> = specs.iter().map(stored).collect();
    let write = |keep: &dyn Fn(&str) -> bool| {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("config.json"), &text).unwrap();
        let kept: Vec<Stored> = all.iter().filter(|(name, ..)| keep(name)).cloned().collect();
        write_tensors(&folder.path().join("model.safetensors"), &kept);
        folder
    };
    let folder = write(&|name| !name.ends_with(".bias"));
    let source = Source::open(folder.path()).unwrap();
    assert!(source.notes[0].contains("no biases"), "{:?}", source.notes);
    for spec in &specs {
        let record = source.tensor(&spec.name).unwrap();
        let value = if spec.name.ends_with(".bias") { 0.0 } else { 1.0 };
        assert_eq!(record.bytes[..], f32s(&vec![value; spec.shape.iter().product()]), "{spec:?}");
    }
    // One that is lost is another matter.
    let said = refusal(write(&|name| !name.ends_with("ln_f.bias")).path());
    assert!(said.contains("transformer.ln_f.bias is missing"), "{said}");
}

#[test]
fn a_tied_head_may_be_there_if_it_is_the_embedding() {
    let mut tensors = parameters(true);
    tensors.push(("lm_head.weight".to_owned(), "F32", vec![3, 2], f32s(&[1.0; 6])));
    Source::open(folder(true, &tensors).path()).unwrap();
    tensors.last_mut().unwrap().3 = f32s(&[2.0; 6]);
    let said = refusal(folder(true, &tensors).path());
    assert!(said.contains("lm_head.weight differs from the embedding"), "{said}");
    let said = refusal(folder(false, &parameters(true)).path());
    assert!(said.contains("lm_head.weight is missing") && said.contains("tie_word"), "{said}");
}

/// Two shards with the index that belongs to them, edited.
fn sharded(edit: impl FnOnce(&mut serde_json::Value)) -> TempDir {
    let tensors = parameters(false);
    let found = folder(false, &[]);
    fs::remove_file(found.path().join("model.safetensors")).unwrap();
    let (first, second) = tensors.split_at(4);
    let mut index = json!({ "metadata": { "total_size": 1 }, "weight_map": {} });
    for (file, tensors) in [("a.safetensors", first), ("b.safetensors", second)] {
        write_tensors(&found.path().join(file), tensors);
        tensors.iter().for_each(|(name, ..)| index["weight_map"][name] = json!(file));
    }
    edit(&mut index);
    let path = found.path().join("model.safetensors.index.json");
    fs::write(path, index.to_string()).unwrap();
    found
}

#[test]
fn shards_are_held_against_their_index() {
    Source::open(sharded(|_| ()).path()).unwrap();
    let name = "model.norm.weight";
    for (edit, words) in [
        (json!("c.safetensors"), "shard c.safetensors is not there"),
        (json!("a.safetensors"), "b.safetensors holds model.norm.weight, of which"),
        (json!("../b.safetensors"), "\"../b.safetensors\" is not in the folder"),
        (json!("/etc/passwd"), "\"/etc/passwd\" is not in the folder"),
        (json!(7), "invalid type"),
    ] {
        let found = sharded(|index| index["weight_map"][name] = edit);
        let said = refusal(found.path());
        assert!(said.contains("model.safetensors.index.json") && said.contains(words), "{said}");
    }
    let found = sharded(|index| index["weight_map"]["ghost"] = json!("a.safetensors"));
    assert!(refusal(found.path()).contains("ghost is not in a.safetensors"));
}

#[test]
fn what_is_no_model_is_named() {
    let found = folder(false, &[]);
    assert!(refusal(&found.path().join("nowhere")).contains("it has no config.json"));
    fs::remove_file(found.path().join("model.safetensors")).unwrap();
    assert!(refusal(found.path()).contains("neither model.safetensors nor"));
    fs::write(found.path().join("pytorch_model.bin"), "code").unwrap();
    assert!(refusal(found.path()).contains("pytorch_model.bin holds code"));
    let path = found.path().join("config.json");
    assert!(refusal(&path).contains("does not begin with GGUF"));
    let huge = fs::read_to_string(&path).unwrap().replace("layers\": 1", "layers\": 1000000000000");
    fs::write(&path, huge).unwrap();
    write_tensors(&found.path().join("model.safetensors"), &parameters(false));
    assert!(refusal(found.path()).contains("12 tensors for a model of 1000000000000 layers"));
}

#[test]
fn values_that_are_no_numbers_are_not_imported() {
    let mut tensors = parameters(false);
    tensors[0].3 = f32s(&[1.0, f32::NAN, f32::INFINITY, 0.0, 0.0, 0.0]);
    let found = folder(false, &tensors);
    let out = found.path().join("out");
    let error = import(&Source::open(found.path()).unwrap(), &out).unwrap_err();
    assert!(matches!(&error, Error::NotFinite { count: 2, .. }), "{error}");
    assert!(!out.exists());
    let left: Vec<PathBuf> =
        fs::read_dir(found.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), 2, "nothing is left behind: {left:?}");
}

#[test]
fn conversions_round_to_the_nearest() {
    // 1 + 2^-8 lies between two bf16 numbers and goes to the even one; a little more goes up.
    let values = f32s(&[1.0 + 1.0 / 256.0, 1.0 + 1.0 / 256.0 + 1e-6, -2.5]);
    let rounded = convert(&values, Dtype::F32, Dtype::Bf16);
    let back = convert(&rounded, Dtype::Bf16, Dtype::F32).into_owned();
    assert_eq!(back, f32s(&[1.0, 1.0 + 1.0 / 128.0, -2.5]));
    let halves = [half::f16::from_f32(0.1), half::f16::MAX].map(|x| x.to_le_bytes()).concat();
    let wide = convert(&halves, Dtype::F16, Dtype::F32);
    assert_eq!(*wide, f32s(&[half::f16::from_f32(0.1).to_f32(), 65504.0]));
}
