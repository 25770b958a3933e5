//! A model from elsewhere becomes a checkpoint of step 0.

use std::fs;
use std::path::{Path, PathBuf};

use super::convert::{convert, count_not_finite};
use super::{Error, Source};
use crate::checkpoint::{self, Contents, Dtype, RunStateRecord, TensorRecord, TensorSpec};
use crate::guard::GuardRecord;
use crate::model::config::Precision;

/// Writes a source as a checkpoint of step 0 into the new folder `out`: fp32 weights, fp32
/// masters with the same values, no optimizer state, an empty plan.
///
/// Values that are not stored in fp32 are converted in memory, all of them; the folder appears
/// whole, by a rename.
///
/// # Errors
/// [`Error::Exists`] if `out` is there, [`Error::NotFinite`] if a value is not a number, and
/// whatever reading and saving may meet.
pub fn import(source: &Source, out: &Path) -> Result<(), Error> {
    if out.exists() {
        return Err(Error::Exists { path: out.to_owned() });
    }
    let mut masters = Vec::new();
    for spec in source.specs() {
        masters.push(master(source, spec)?);
    }
    let model = masters
        .iter()
        .map(|record| TensorRecord { spec: record.spec.clone(), bytes: (&*record.bytes).into() });
    let config_json = source.config.to_hf_json(Precision::Fp32);
    let contents = Contents {
        config_json: &config_json,
        model: model.clone().collect(),
        masters: model.collect(),
        optimizer: Vec::new(),
        run_state: run_state(source.specs()),
        extra_files: source.files.clone(),
    };
    let staging = staging_folder(out);
    let saved = save(&staging, &contents, out);
    // What is left of it holds no checkpoint: best effort.
    let _ = fs::remove_dir_all(&staging);
    saved
}

fn master<'a>(source: &'a Source, spec: &TensorSpec) -> Result<TensorRecord<'a>, Error> {
    let TensorRecord { spec: stored, bytes } = source.tensor(&spec.name)?;
    let count = count_not_finite(&bytes, stored.dtype);
    if count > 0 {
        let (path, tensor) = (source.path.clone(), spec.name.clone());
        return Err(Error::NotFinite { path, tensor, count });
    }
    let bytes = if stored.dtype == Dtype::F32 {
        bytes
    } else {
        convert(&bytes, stored.dtype, Dtype::F32).into_owned().into()
    };
    Ok(TensorRecord { spec: spec.clone(), bytes })
}

fn run_state(specs: &[TensorSpec]) -> RunStateRecord {
    RunStateRecord {
        step: 0,
        num_tokens: 0,
        total_flops: 0,
        seed: 0,
        parameter_steps: specs.iter().map(|spec| (spec.name.clone(), 0)).collect(),
        data_fingerprint: String::new(),
        data_stages: String::new(),
        plan_toml: String::new(),
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        guard: GuardRecord::default(),
    }
}

/// Saves as any checkpoint is saved, then gives it its place.
fn save(staging: &Path, contents: &Contents<'_>, out: &Path) -> Result<(), Error> {
    let folder = checkpoint::save(staging, contents)?;
    fs::rename(&folder, out).map_err(|cause| Error::Io {
        action: "rename",
        path: out.to_owned(),
        cause,
    })
}

/// A folder beside `out`, on the same file system.
pub(super) fn staging_folder(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".partial-{name}"))
}
