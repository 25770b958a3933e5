//! Saving by several ranks, and models in several files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::super::*;
use super::{contents, names_in};

/// The tensors of the contents that all tests here save.
fn list(contents: &Contents<'_>) -> TensorList {
    let specs = |records: &[TensorRecord<'_>]| -> Vec<TensorSpec> {
        records.iter().map(|record| record.spec.clone()).collect()
    };
    TensorList {
        model: specs(&contents.model),
        masters: specs(&contents.masters),
        optimizer: specs(&contents.optimizer),
    }
}

/// The hands of all ranks, and what each brings: elements in turn, so that all write to all files.
fn ranks(run: &Path, contents: &Contents<'_>, degree: usize) -> Vec<(Staging, Snapshot)> {
    let step = contents.run_state.step;
    let blueprint = Blueprint::new(step, &list(contents), contents.max_shard_bytes).unwrap();
    let blueprint = Arc::new(blueprint);
    let mut snapshots: Vec<Snapshot> = (0..degree).map(|_| Snapshot::default()).collect();
    let parts = [
        (Part::Model, &contents.model),
        (Part::Masters, &contents.masters),
        (Part::Optimizer, &contents.optimizer),
    ];
    for (part, records) in parts {
        for TensorRecord { spec, bytes } in records {
            for (element, value) in bytes.chunks(spec.dtype.size_bytes()).enumerate() {
                let place = [(part, spec.name.as_str())];
                snapshots[element % degree].add(&blueprint, &place, element, value).unwrap();
            }
        }
    }
    let hand = |(rank, snapshot)| {
        let Contents { config_json, run_state, extra_files, .. } = contents;
        let small_files = SmallFiles::new(config_json, run_state, extra_files).unwrap();
        let small_files = (rank == 0).then_some(small_files);
        (Staging::new(run, blueprint.clone(), (rank, degree), small_files), snapshot)
    };
    snapshots.into_iter().enumerate().map(hand).collect()
}

pub(super) fn save_by(
    run: &Path,
    contents: &Contents<'_>,
    degree: usize,
) -> Result<PathBuf, Error> {
    let mut ranks = ranks(run, contents, degree);
    let mut work = || {
        // The last rank first: no rank may need another to have begun.
        for (staging, snapshot) in ranks.iter_mut().rev() {
            staging.write(snapshot)?;
        }
        ranks.iter().try_for_each(|(staging, _)| staging.hash())?;
        ranks[0].0.publish()
    };
    let saved = work();
    if saved.is_err() {
        ranks[0].0.discard();
    }
    saved
}

/// Every file of a folder with its content.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: &str| (name.to_owned(), fs::read(folder.join(name)).unwrap());
    let mut files: Vec<_> =
        names_in(folder).iter().filter(|name| *name != "grove").map(|name| read(name)).collect();
    let own = names_in(&folder.join("grove"));
    files.extend(own.iter().map(|name| read(&format!("grove/{name}"))));
    files
}

#[test]
fn any_number_of_ranks_makes_the_same_files() {
    let contents = contents(10, 300);
    let alone = TempDir::new().unwrap();
    let expected = content(&save(alone.path(), &contents).unwrap());
    for degree in [1, 2, 3, 7] {
        let run = TempDir::new().unwrap();
        let folder = save_by(run.path(), &contents, degree).unwrap();
        assert!(content(&folder) == expected, "by {degree} ranks");
        Checkpoint::open(&folder).unwrap().verify().unwrap();
        let latest = fs::read_link(run.path().join("latest")).unwrap();
        assert_eq!(latest, Path::new("checkpoints/step-00000010"));
    }
}

#[test]
fn values_that_nobody_brought_are_noticed() {
    let run = TempDir::new().unwrap();
    let contents = contents(10, 300);
    let mut ranks = ranks(run.path(), &contents, 2);
    for (staging, snapshot) in &mut ranks {
        staging.write(snapshot).unwrap();
    }
    // As if its values had got lost: the files are as long as they should be.
    ranks[1].0.write(&Snapshot::default()).unwrap();
    ranks.iter().for_each(|(staging, _)| staging.hash().unwrap());
    let error = ranks[0].0.publish().unwrap_err().to_string();
    assert!(error.contains("expected values of ") && error.contains("the ranks wrote"), "{error}");
    ranks[0].0.discard();
    assert_eq!(names_in(&run.path().join("checkpoints")), [""; 0]);
}

#[test]
fn a_snapshot_refuses_what_has_no_place() {
    let contents = contents(10, 5);
    let blueprint = Blueprint::new(10, &list(&contents), u64::MAX).unwrap();
    let mut snapshot = Snapshot::default();
    let zeros = [0; 8];
    let error = snapshot.add(&blueprint, &[(Part::Masters, "b")], 4, &zeros).unwrap_err();
    assert!(error.to_string().contains("F32 [5] takes 20 bytes, found 24"), "{error}");
    let error = snapshot.add(&blueprint, &[(Part::Masters, "c")], 0, &zeros).unwrap_err();
    assert!(error.to_string().contains("the checkpoint has no such tensor"), "{error}");
}

#[test]
fn a_large_model_is_stored_in_several_files_and_read_as_one() {
    let (run, whole_run) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let whole = save(whole_run.path(), &contents(10, 300)).unwrap();
    let mut contents = contents(10, 300);
    // Less than the larger of both tensors takes.
    contents.max_shard_bytes = 100;
    let folder = save_by(run.path(), &contents, 2).unwrap();
    let files = "config.json generation_config.json grove manifest.json \
                 model-00001-of-00002.safetensors model-00002-of-00002.safetensors \
                 model.safetensors.index.json";
    assert_eq!(names_in(&folder).join(" "), files);
    let index = fs::read(folder.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let bytes: usize = contents.model.iter().map(|record| record.bytes.len()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
    assert_eq!(index["weight_map"]["a"], "model-00001-of-00002.safetensors");

    let checkpoint = Checkpoint::open(&folder).unwrap();
    checkpoint.verify().unwrap();
    let whole = Checkpoint::open(&whole).unwrap();
    assert_eq!(checkpoint.model().names().count(), 2);
    for expected in whole.model().tensors() {
        let found = checkpoint.model().get(&expected.spec.name).unwrap();
        assert_eq!((found.spec, found.bytes), (expected.spec, expected.bytes));
    }
}

#[test]
fn an_index_that_leads_elsewhere_is_refused() {
    let run = TempDir::new().unwrap();
    let mut contents = contents(10, 300);
    contents.max_shard_bytes = 100;
    let folder = save_by(run.path(), &contents, 1).unwrap();
    let path = folder.join("model.safetensors.index.json");
    let text = fs::read_to_string(&path).unwrap();
    let cases = [
        (text.replace("\"model-00001", "\"../model-00001"), "not the name of a file beside it"),
        (text.replace("\"a\":", "\"z\":"), "tensor \"z\" is not in"),
        (text.replace("weight_map", "map"), "missing field `weight_map`"),
    ];
    for (changed, expected) in cases {
        fs::write(&path, changed).unwrap();
        let error = TensorFile::open_model(&folder).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_manifest_that_leads_elsewhere_is_refused() {
    let run = TempDir::new().unwrap();
    let folder = save(run.path(), &contents(10, 5)).unwrap();
    let path = folder.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    for name in ["../config.json", "/etc/hostname"] {
        fs::write(&path, text.replace("\"config.json\"", &format!("{name:?}"))).unwrap();
        let error = Checkpoint::open(&folder).unwrap_err().to_string();
        assert!(error.contains("is not below the checkpoint's folder"), "{error}");
    }
}

#[test]
fn one_hundred_damages_are_named() {
    let run = TempDir::new().unwrap();
    let mut contents = contents(10, 300);
    contents.max_shard_bytes = 100;
    let whole = save_by(run.path(), &contents, 2).unwrap();
    let files: Vec<String> = content(&whole).into_iter().map(|(name, _)| name).collect();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: usize| {
        // Xorshift (Marsaglia 2003): any numbers will do, as long as they are the same each time.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let mut kinds = BTreeSet::new();
    for case in 0..100 {
        let scratch = TempDir::new().unwrap();
        let folder = scratch.path().join("step-00000010");
        fs::create_dir_all(folder.join("grove")).unwrap();
        for file in &files {
            fs::copy(whole.join(file), folder.join(file)).unwrap();
        }
        let name = &files[case % files.len()];
        let path = folder.join(name);
        let mut bytes = fs::read(&path).unwrap();
        let kind = draw(4);
        let named = match kind {
            0 => {
                let at = draw(bytes.len());
                bytes[at] ^= 1 << draw(8);
                fs::write(&path, bytes).unwrap();
                name.clone()
            }
            1 => {
                fs::write(&path, &bytes[..draw(bytes.len())]).unwrap();
                name.clone()
            }
            2 => {
                fs::remove_file(&path).unwrap();
                name.clone()
            }
            _ => {
                let foreign = format!("{name}.orig");
                fs::write(folder.join(&foreign), bytes).unwrap();
                foreign
            }
        };
        kinds.insert((case % files.len(), kind));
        let outcome = Checkpoint::open(&folder).and_then(|checkpoint| checkpoint.verify());
        let error = outcome.expect_err(&format!("case {case}: {kind} of {name}")).to_string();
        // A manifest with another hash in it accuses the file that it is the hash of.
        let is_named = error.contains(&named) || named == "manifest.json";
        assert!(is_named, "case {case}: {kind} of {name}: {error}");
    }
    assert!(kinds.len() > 25, "most kinds of damage to most files: {}", kinds.len());
}
