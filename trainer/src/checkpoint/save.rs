//! Saving a checkpoint whose values are all here, by one process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layout::MODEL;
use super::{
    Blueprint, Error, ExtraFile, Part, RunStateRecord, SmallFiles, Staging, TensorList,
    TensorRecord, TensorSpec, clear_stale,
};

/// All that a checkpoint holds. Its step is that of `run_state`.
#[derive(Clone, Debug)]
pub struct Contents<'a> {
    /// `config.json`, as Hugging Face reads it.
    pub config_json: &'a str,
    /// The model's weights, under Hugging Face's names.
    pub model: Vec<TensorRecord<'a>>,
    /// The master weights, under the same names.
    pub masters: Vec<TensorRecord<'a>>,
    /// The optimizer's state, named `<kind>/<parameter>`.
    pub optimizer: Vec<TensorRecord<'a>>,
    /// Where the run is.
    pub run_state: RunStateRecord,
    /// Files beside `config.json`: the tokenizer's, `generation_config.json`.
    pub extra_files: Vec<ExtraFile<'a>>,
    /// Bytes of weights above which the model is stored in several files.
    pub max_shard_bytes: u64,
}

/// Saves a checkpoint in `run_folder` and returns its folder, on the disk and complete.
///
/// Remains of saves that did not end are removed first. A checkpoint of the same step is
/// replaced. One process of a run may save at a time. Values are streamed: besides the records
/// themselves no copy is held.
///
/// # Errors
/// [`Error::Record`] or [`Error::ExtraFileName`] before anything is written, if the contents
/// contradict themselves; [`Error::Save`] if a file cannot be written: then the partial folder
/// is removed and earlier checkpoints are untouched.
pub fn save(run_folder: &Path, contents: &Contents<'_>) -> Result<PathBuf, Error> {
    let Contents { config_json, model, masters, optimizer, run_state, extra_files, .. } = contents;
    let tensors =
        TensorList { model: specs(model)?, masters: specs(masters)?, optimizer: specs(optimizer)? };
    let blueprint = Blueprint::new(run_state.step, &tensors, contents.max_shard_bytes)?;
    let mut pieces = Vec::new();
    for (part, records) in
        [(Part::Model, model), (Part::Masters, masters), (Part::Optimizer, optimizer)]
    {
        for record in records {
            let place = (part, record.spec.name.as_str());
            let (file, offset) = blueprint.locate(place, 0, record.bytes.len())?;
            pieces.push((file, offset, &*record.bytes));
        }
    }
    let small_files = SmallFiles::new(config_json, run_state, extra_files)?;
    clear_stale(run_folder)?;
    let alone = (0, 1);
    let mut staging = Staging::new(run_folder, Arc::new(blueprint), alone, Some(small_files));
    let saved = staging
        .write_pieces(pieces.into_iter())
        .and_then(|()| staging.hash())
        .and_then(|()| staging.publish());
    if saved.is_err() {
        staging.discard();
    }
    saved
}

/// What the records are, once each is known to have the bytes that it says.
fn specs(records: &[TensorRecord<'_>]) -> Result<Vec<TensorSpec>, Error> {
    let spec = |record: &TensorRecord<'_>| {
        let (expected, found) = (record.spec.len_bytes(), record.bytes.len());
        if found == expected {
            return Ok(record.spec.clone());
        }
        Err(Error::Record {
            file: MODEL.to_string(),
            tensor: record.spec.name.clone(),
            reason: format!("{} takes {expected} bytes, found {found}", record.spec),
        })
    };
    records.iter().map(spec).collect()
}
