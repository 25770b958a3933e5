//! What `grove ckpt` is made of: listing, faults, differences, pruning by hand.

use std::fs;
use std::num::NonZeroU64;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tempfile::TempDir;

use super::super::*;
use super::{contents, run_state, steps};
use crate::model::config::{ModelConfig, Precision};
use crate::model::units::UnitMap;

/// Cases of damage that `verify` must name, all of them.
const NUM_DAMAGES: usize = 100;

/// Keys the choice of damages.
const SEED: u64 = 6;

fn model() -> ModelConfig {
    let config = serde_json::json!({
        "model_type": "llama",
        "vocab_size": 5,
        "hidden_size": 4,
        "intermediate_size": 6,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8,
    });
    ModelConfig::from_hf_json(&config.to_string()).unwrap()
}

/// A checkpoint of a true model: every parameter holds its step and its place.
fn saved_model(run: &Path, step: u64) -> std::path::PathBuf {
    let (config, mut state) = (model(), run_state(step));
    state.parameter_steps.clear();
    let (mut masters, mut optimizer) = (Vec::new(), Vec::new());
    for param in UnitMap::new(&config).units.into_iter().flat_map(|unit| unit.params) {
        let shape: Vec<usize> = param.shape.iter().map(|&size| size as usize).collect();
        let numel: usize = shape.iter().product();
        let values: Vec<f32> = (0..numel).map(|i| i as f32 + step as f32).collect();
        let bytes = super::bytes_of(&values);
        state.parameter_steps.insert(param.name.clone(), step);
        let moment = format!("exp_avg/{}", param.name);
        optimizer.push(TensorRecord::new(moment, Dtype::F32, &shape, bytes.clone()));
        masters.push(TensorRecord::new(param.name, Dtype::F32, &shape, bytes));
    }
    let config_json = config.to_hf_json(Precision::Fp32);
    let contents = Contents {
        config_json: &config_json,
        model: masters.clone(),
        masters,
        optimizer,
        run_state: state,
        extra_files: contents(step, 1).extra_files,
    };
    save(run, &contents).unwrap()
}

fn said(folder: &Path) -> Vec<String> {
    faults(folder).unwrap().iter().map(ToString::to_string).collect()
}

fn all_files(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            files.extend(all_files(&entry.path()).into_iter().map(|file| format!("{name}/{file}")));
        } else {
            files.push(name);
        }
    }
    files.sort();
    files
}

#[test]
fn every_damage_is_named_and_nothing_else() {
    let run = TempDir::new().unwrap();
    let folder = saved_model(run.path(), 10);
    assert_eq!(said(&folder), [""; 0]);
    let files = all_files(&folder);
    assert_eq!(files.len(), 7, "{files:?}");
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut below = |bound: usize| (random.next_u64() % bound as u64) as usize;
    for case in 0..NUM_DAMAGES {
        let file = files[case % files.len()].as_str();
        let path = folder.join(file);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let kind = case / files.len() % 4;
        let damaged = match kind {
            0 => {
                bytes[below(whole.len())] ^= 1 << below(8);
                fs::write(&path, bytes).unwrap();
                file.to_owned()
            }
            1 => {
                fs::write(&path, &whole[..below(whole.len())]).unwrap();
                file.to_owned()
            }
            2 => {
                fs::remove_file(&path).unwrap();
                file.to_owned()
            }
            _ => {
                let beside = format!("{file}.{}", below(1000));
                fs::write(folder.join(&beside), &whole).unwrap();
                beside
            }
        };
        let found = said(&folder);
        assert!(!found.is_empty(), "case {case}: damage {kind} of {file} was not found");
        assert!(
            found.iter().all(|line| line.contains(&damaged)),
            "case {case}: damage {kind} of {file}: {found:?}"
        );
        fs::write(&path, &whole).unwrap();
        if kind == 3 {
            fs::remove_file(folder.join(&damaged)).unwrap();
        }
    }
    assert_eq!(said(&folder), [""; 0]);
}

/// Writes a file of a checkpoint anew, and its entry in the manifest.
fn replace(folder: &Path, file: &str, content: &[u8]) {
    use sha2::{Digest, Sha256};
    let path = folder.join("manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let sha256 = super::super::hash::hex(Sha256::digest(content).as_slice());
    manifest["files"][file] = serde_json::json!({ "bytes": content.len(), "sha256": sha256 });
    fs::write(folder.join(file), content).unwrap();
    fs::write(path, manifest.to_string()).unwrap();
}

#[test]
fn files_that_contradict_each_other_are_named_though_their_hashes_are_right() {
    let run = TempDir::new().unwrap();
    let folder = saved_model(run.path(), 10);
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let wider = config.replace("\"intermediate_size\": 6", "\"intermediate_size\": 7");
    replace(&folder, "config.json", wider.as_bytes());
    let found = said(&folder);
    // Three matrices of two blocks, in three files.
    assert_eq!(found.len(), 18, "{found:?}");
    let line = "model.safetensors: tensor model.layers.0.mlp.down_proj.weight is F32 [4, 6], \
                expected F32 [4, 7]";
    assert_eq!(found[0], line);

    replace(&folder, "config.json", config.replace("s\": 2", "s\": 2000000000000").as_bytes());
    let found = said(&folder);
    assert!(found[0].contains("config.json"), "{found:?}");
    replace(&folder, "config.json", config.as_bytes());
    let state = fs::read_to_string(folder.join("grove/run.json")).unwrap();
    let state = state.replace("\"step\": 10", "\"step\": 11").replace("lm_head.weight", "head");
    replace(&folder, "grove/run.json", state.as_bytes());
    let found = said(&folder);
    assert_eq!(found[0], "manifest.json: step is 10, expected 11 by grove/run.json");
    assert_eq!(found[1], "grove/run.json: parameter_steps lacks lm_head.weight");
    assert!(found[2].contains("parameter_steps names head"), "{found:?}");
}

#[test]
fn a_manifest_cannot_lead_out_of_its_folder() {
    let run = TempDir::new().unwrap();
    let folder = saved_model(run.path(), 10);
    fs::write(run.path().join("secret"), "words").unwrap();
    let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap();
    let outside = run.path().join("secret").display().to_string();
    for name in ["../../secret", &outside, "grove/../../../secret", ".", ""] {
        let text = manifest.replace("generation_config.json", name);
        fs::write(folder.join("manifest.json"), text).unwrap();
        let error = Checkpoint::open(&folder).unwrap_err().to_string();
        assert!(error.contains("is not below the checkpoint's folder"), "{name}: {error}");
        let found = said(&folder);
        assert!(found.len() == 1 && found[0].starts_with("manifest.json: "), "{found:?}");
    }
}

#[test]
fn an_inventory_tells_what_each_folder_is() {
    let run = TempDir::new().unwrap();
    assert_eq!(inventory(run.path()).unwrap().len(), 0);
    let folder = saved_model(run.path(), 10);
    let cut = saved_model(run.path(), 20);
    fs::remove_file(cut.join("config.json")).unwrap();
    fs::create_dir(run.path().join("checkpoints/.partial-step-00000030")).unwrap();
    let items = inventory(run.path()).unwrap();
    assert_eq!(items.iter().map(|item| item.step).collect::<Vec<_>>(), [10, 20, 30]);
    assert!(matches!(items[0].condition, Condition::Whole));
    let files = all_files(&folder);
    let bytes: u64 = files.iter().map(|f| fs::metadata(folder.join(f)).unwrap().len()).sum();
    assert_eq!(items[0].bytes, bytes);
    let Condition::Damaged(error) = &items[1].condition else { panic!("{items:?}") };
    assert!(error.to_string().contains("config.json is missing"), "{error}");
    assert!(matches!(items[2].condition, Condition::Unfinished));
}

#[test]
fn differences_are_measured_and_named() {
    let (run, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let a = Checkpoint::open(&saved_model(run.path(), 10)).unwrap();
    let same = diff(&a, &a);
    assert_eq!((same.settings.len(), same.tensors.len()), (0, 0));
    assert_eq!(same.num_equal_tensors, 2 * 21);

    let b = Checkpoint::open(&saved_model(other.path(), 12)).unwrap();
    let different = diff(&a, &b);
    let step = SettingDifference {
        key: "step".to_owned(),
        values: [Some("10".to_owned()), Some("12".to_owned())],
    };
    assert!(different.settings.contains(&step), "{different:?}");
    assert_eq!(different.tensors.len(), 2 * 21);
    let TensorDifference::Values { spec, num_different, max_abs, max_relative } =
        &different.tensors[0]
    else {
        panic!("{different:?}")
    };
    // Masters hold place + step: 20 values that differ by 2, the first of 10 and 12 the most.
    assert_eq!((spec.name.as_str(), *num_different), ("lm_head.weight", 20));
    assert_eq!((*max_abs, *max_relative), (2.0, 2.0 / 12.0));
}

#[test]
fn pruning_by_hand_keeps_the_newest_and_the_multiples() {
    let run = TempDir::new().unwrap();
    for step in [10, 20, 30, 40, 50] {
        save(run.path(), &contents(step, 5)).unwrap();
    }
    let keep = Keep { last: 2, every: NonZeroU64::new(20) };
    let doomed = superfluous(run.path(), keep).unwrap();
    assert_eq!(doomed.iter().map(|whole| whole.step).collect::<Vec<_>>(), [10, 30]);
    assert_eq!(steps(run.path()), [10, 20, 30, 40, 50], "only asked");
    remove_all(run.path(), &doomed).unwrap();
    assert_eq!(steps(run.path()), [20, 40, 50]);
    let newest = superfluous(run.path(), Keep { last: 0, every: None }).unwrap();
    assert_eq!(newest.len(), 2, "the newest always stays");
}
