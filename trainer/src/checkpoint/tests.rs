//! Tests of checkpoints: whole or not there, and damage named.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::layout::Entry;
use super::*;
use crate::guard::GuardRecord;

mod damage;
mod inspection;

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_string(), dtype, shape: shape.to_vec() }
}

fn run_state(step: u64) -> RunStateRecord {
    RunStateRecord {
        step,
        num_tokens: step * 4096,
        total_flops: u128::from(u64::MAX) * 3,
        seed: 7,
        parameter_steps: BTreeMap::from([("a".to_string(), step), ("b".to_string(), 1)]),
        data_fingerprint: "f00d".to_string(),
        data_stages: String::new(),
        plan_toml: "seed = 7\n[model]\n".to_string(),
        guard: GuardRecord { loss_bits: vec![1.5f64.to_bits()], ..GuardRecord::default() },
        program_version: "0.1.0".to_string(),
    }
}

/// A checkpoint of two parameters, `a` `[2, 3]` and `b` `[num_b]`.
fn contents(step: u64, num_b: usize) -> Contents<'static> {
    let a = bytes_of(&[1.0, -2.0, 0.5, f32::MIN_POSITIVE, f32::NAN, step as f32]);
    let b = bytes_of(&vec![0.25; num_b]);
    let masters = vec![
        TensorRecord::new("b", Dtype::F32, &[num_b], b.clone()),
        TensorRecord::new("a", Dtype::F32, &[2, 3], a.clone()),
    ];
    let model = vec![
        TensorRecord::new("b", Dtype::Bf16, &[num_b], vec![1; num_b * 2]),
        TensorRecord::new("a", Dtype::Bf16, &[2, 3], (0..12).collect::<Vec<u8>>()),
    ];
    let optimizer = vec![
        TensorRecord::new("exp_avg/a", Dtype::F32, &[2, 3], a),
        TensorRecord::new("quantized/a", Dtype::U8, &[3], vec![7, 8, 9]),
        TensorRecord::new("weight_sum/a", Dtype::F64, &[], 0.1_f64.to_le_bytes().to_vec()),
    ];
    let extra_files = vec![ExtraFile::Content {
        name: "generation_config.json".to_string(),
        bytes: Cow::Borrowed(b"{}"),
    }];
    let (config_json, run_state) = ("{\"model_type\": \"llama\"}", run_state(step));
    Contents { config_json, model, masters, optimizer, run_state, extra_files }
}

fn saved(step: u64) -> (TempDir, PathBuf) {
    let run = TempDir::new().unwrap();
    let folder = save(run.path(), &contents(step, 5)).unwrap();
    (run, folder)
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn steps(run: &Path) -> Vec<u64> {
    list(run).unwrap().iter().map(|whole| whole.step).collect()
}

#[test]
fn what_is_saved_is_read_bit_for_bit() {
    let (run, folder) = saved(20);
    assert_eq!(folder, run.path().join("checkpoints/step-00000020"));
    let files = "config.json generation_config.json grove manifest.json model.safetensors";
    assert_eq!(names_in(&folder).join(" "), files);

    let checkpoint = Checkpoint::open(&folder).unwrap();
    checkpoint.verify().unwrap();
    let expected = contents(20, 5);
    assert_eq!(*checkpoint.run_state(), expected.run_state);
    assert_eq!(checkpoint.config_json().unwrap(), expected.config_json);
    for (file, records) in [
        (checkpoint.model(), &expected.model),
        (checkpoint.masters(), &expected.masters),
        (checkpoint.optimizer(), &expected.optimizer),
    ] {
        assert_eq!(file.names().count(), records.len());
        for record in records {
            let view = file.get(&record.spec.name).unwrap();
            assert_eq!(*view.spec, record.spec);
            assert_eq!(view.bytes, &*record.bytes);
            let address = view.bytes.as_ptr() as usize;
            assert!(address.is_multiple_of(record.spec.dtype.size_bytes()), "{}", record.spec);
        }
    }
    let state = checkpoint.optimizer_state("quantized", "a").unwrap();
    assert_eq!(state.bytes, [7, 8, 9]);
    let error = checkpoint.optimizer_state("exp_avg", "z").unwrap_err().to_string();
    assert!(error.starts_with("no tensor \"exp_avg/z\" in ") && error.contains("3 tensors"));
}

#[test]
fn the_same_contents_give_the_same_files() {
    let (_first_run, first) = saved(3);
    let (_second_run, second) = saved(3);
    let read = |folder: &Path| fs::read(folder.join("manifest.json")).unwrap();
    assert_eq!(read(&first), read(&second));
}

#[test]
fn a_partial_folder_is_never_a_checkpoint() {
    let (run, folder) = saved(10);
    // A save of step 20 that was killed just before its rename: complete but for its name.
    let partial = Entry::Partial(20).path(run.path());
    fs::create_dir_all(&partial).unwrap();
    for file in names_in(&folder).iter().filter(|name| *name != "grove") {
        fs::copy(folder.join(file), partial.join(file)).unwrap();
    }
    // A foreign folder, and one that has the name but no manifest.
    fs::create_dir(run.path().join("checkpoints/step-best")).unwrap();
    fs::create_dir(run.path().join("checkpoints/step-00000030")).unwrap();

    assert_eq!(latest(run.path()).unwrap(), Some(Whole { step: 10, folder }));
    let damaged = survey(run.path()).unwrap().damaged;
    assert_eq!(damaged.len(), 1);
    assert!(matches!(&damaged[0], Damaged { step: 30, error: Error::NoManifest { .. } }));

    save(run.path(), &contents(40, 5)).unwrap();
    assert!(!partial.exists(), "the next save removes partial folders");
    assert_eq!(steps(run.path()), [10, 40]);
}

#[test]
fn a_run_without_checkpoints_has_no_latest() {
    let run = TempDir::new().unwrap();
    assert_eq!(latest(run.path()).unwrap(), None);
}

#[test]
fn a_checkpoint_of_the_same_step_is_replaced() {
    let (run, _) = saved(10);
    let folder = save(run.path(), &contents(10, 9)).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.masters().get("b").unwrap().spec.shape, [9]);
    assert_eq!(names_in(&run.path().join("checkpoints")), ["step-00000010"]);
}

#[test]
fn a_replacement_that_did_not_end_is_undone() {
    let (run, folder) = saved(10);
    let replaced = Entry::Replaced(10).path(run.path());
    fs::rename(&folder, &replaced).unwrap();
    assert_eq!(latest(run.path()).unwrap(), None);
    clear_stale(run.path()).unwrap();
    assert_eq!(steps(run.path()), [10]);
    assert!(!replaced.exists());
}

#[test]
fn all_wrong_tensors_are_named_at_once() {
    let (_run, folder) = saved(10);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let a = spec("a", Dtype::F32, &[2, 3]);
    let b = spec("b", Dtype::F32, &[5]);
    checkpoint.masters().check_names(&[b.clone(), a.clone()]).unwrap();

    let wide = spec("a", Dtype::F64, &[2, 3]);
    let c = spec("c", Dtype::F32, &[]);
    match checkpoint.masters().check_names(&[c.clone(), wide.clone()]).unwrap_err() {
        Error::Names { mismatches, .. } => assert_eq!(
            mismatches,
            [
                Mismatch::Differs { expected: wide, found: a },
                Mismatch::Extra { found: b },
                Mismatch::Missing { expected: c },
            ]
        ),
        other => panic!("expected Names, found {other}"),
    }
}

#[test]
fn contents_that_contradict_themselves_are_refused_before_anything_is_written() {
    let run = TempDir::new().unwrap();
    let mut short = contents(10, 5);
    short.masters[0].spec.shape = vec![6];
    let mut double = contents(10, 5);
    double.optimizer[1].spec = double.optimizer[0].spec.clone();
    double.optimizer[1].bytes = double.optimizer[0].bytes.clone();
    let cases = [(short, "F32 [6] takes 24 bytes, found 20"), (double, "found it twice")];
    for (contents, expected) in cases {
        let error = save(run.path(), &contents).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    for name in ["../evil", "", "..", "a/b", "config.json", "grove"] {
        let mut contents = contents(10, 5);
        let bytes = Cow::Borrowed(&b""[..]);
        contents.extra_files = vec![ExtraFile::Content { name: name.to_string(), bytes }];
        let error = save(run.path(), &contents).unwrap_err();
        assert!(matches!(error, Error::ExtraFileName { .. }), "{name:?}: {error}");
    }
    assert_eq!(names_in(run.path()), [""; 0]);
}

#[test]
fn extra_files_are_copied() {
    let run = TempDir::new().unwrap();
    let from = run.path().join("tokenizer.json");
    fs::write(&from, "words").unwrap();
    let mut contents = contents(1, 5);
    contents.extra_files = vec![ExtraFile::Copy { from }];
    let folder = save(run.path(), &contents).unwrap();
    assert_eq!(fs::read_to_string(folder.join("tokenizer.json")).unwrap(), "words");
    Checkpoint::open(&folder).unwrap().verify().unwrap();
}

#[test]
fn prune_keeps_the_newest_whole_ones() {
    let run = TempDir::new().unwrap();
    for step in [10, 9, 100_000_000, 30] {
        save(run.path(), &contents(step, 5)).unwrap();
    }
    let cut = Entry::Whole(20).path(run.path());
    fs::create_dir(&cut).unwrap();
    let removed = prune(run.path(), NonZeroUsize::new(2).unwrap()).unwrap();
    assert_eq!(removed.iter().map(|whole| whole.step).collect::<Vec<_>>(), [9, 10]);
    assert_eq!(steps(run.path()), [30, 100_000_000]);
    assert!(cut.exists(), "a damaged folder is left to the user");
    assert_eq!(names_in(&run.path().join("checkpoints")).len(), 3);
}

#[test]
fn the_hash_covers_names_dtypes_shapes_and_values() {
    let (run, folder) = saved(10);
    let hash = hash_masters(&folder).unwrap();
    // Computed by hand with Python's hashlib from the documented layout.
    assert_eq!(hash, "f79a82336973a675a2c48887b92f80571967163e537f33bd1e0bf871090736a5");
    let again = save(run.path(), &contents(10, 5)).unwrap();
    assert_eq!(hash_masters(&again).unwrap(), hash);

    let spec = spec("a", Dtype::F32, &[2]);
    let of = |spec: &TensorSpec, bytes: &[u8]| {
        hash_tensors([TensorView { spec, bytes }].into_iter()).unwrap()
    };
    let zeros = [0; 8];
    let hashes = [
        of(&spec, &zeros),
        of(&spec, &[0, 0, 0, 0, 0, 0, 0, 1]),
        of(&TensorSpec { shape: vec![2, 1], ..spec.clone() }, &zeros),
        of(&TensorSpec { dtype: Dtype::F64, shape: vec![1], ..spec.clone() }, &zeros),
        of(&TensorSpec { name: "b".to_string(), ..spec.clone() }, &zeros),
    ];
    let distinct: std::collections::BTreeSet<_> = hashes.iter().collect();
    assert_eq!(distinct.len(), hashes.len());

    let twice = [TensorView { spec: &spec, bytes: &zeros }; 2];
    assert!(matches!(hash_tensors(twice.into_iter()), Err(Error::HashOrder { .. })));
}

#[test]
fn a_plain_model_has_no_masters_to_hash() {
    let (_run, folder) = saved(10);
    fs::remove_dir_all(folder.join("grove")).unwrap();
    fs::remove_file(folder.join("manifest.json")).unwrap();
    let error = hash_masters(&folder).unwrap_err();
    assert!(matches!(error, Error::NoMasters { .. }), "{error}");
    assert!(error.to_string().contains("a plain Hugging Face model has no masters"));
    assert!(matches!(Checkpoint::open(&folder), Err(Error::NoManifest { .. })));
    assert_eq!(TensorFile::open(&folder.join("model.safetensors")).unwrap().names().count(), 2);
}
