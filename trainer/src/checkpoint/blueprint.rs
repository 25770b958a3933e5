//! What a checkpoint will consist of, byte for byte, before there is a value: every rank computes
//! the same blueprint, so that each can write its own values at their places.

use std::collections::BTreeMap;

use serde_json::json;

use super::layout::{MASTERS, MODEL, OPTIMIZER, model_shard};
use super::tensor_layout::{TensorLayout, in_file_order};
use super::{Error, TensorSpec};

/// Bytes of weights above which a model is stored in several files unless told otherwise: what
/// Hugging Face's own `save_pretrained` takes.
pub const DEFAULT_MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// A part of a checkpoint that consists of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The model's weights, under Hugging Face's names.
    Model,
    /// The master weights, under the same names.
    Masters,
    /// The optimizer's state, named `<kind>/<parameter>`.
    Optimizer,
}

/// The tensors of a checkpoint, without their values.
#[derive(Clone, Debug)]
pub struct TensorList {
    /// Of [`Part::Model`].
    pub model: Vec<TensorSpec>,
    /// Of [`Part::Masters`].
    pub masters: Vec<TensorSpec>,
    /// Of [`Part::Optimizer`].
    pub optimizer: Vec<TensorSpec>,
}

/// Which files the tensors of a checkpoint go to, and where in them each value lies.
#[derive(Debug)]
pub struct Blueprint {
    step: u64,
    files: Vec<TensorLayout>,
    /// By part and tensor: the file's index.
    places: BTreeMap<(Part, String), usize>,
    /// `model.safetensors.index.json`, where the model has several files.
    index: Option<String>,
}

impl Blueprint {
    /// The blueprint of the checkpoint of `step`. A model of more than `max_shard_bytes` bytes is
    /// cut into files of at most that, as Hugging Face cuts it (a larger tensor has a file of its
    /// own), with an index beside them.
    ///
    /// # Errors
    /// [`Error::Record`] if a name is there twice or is one that the format keeps for itself.
    pub fn new(step: u64, tensors: &TensorList, max_shard_bytes: u64) -> Result<Self, Error> {
        let (mut files, index) = model_files(&tensors.model, max_shard_bytes)?;
        let num_model_files = files.len();
        files.push(TensorLayout::new(MASTERS, &tensors.masters)?);
        files.push(TensorLayout::new(OPTIMIZER, &tensors.optimizer)?);
        let mut places = BTreeMap::new();
        for (file, layout) in files.iter().enumerate() {
            let part = match file.checked_sub(num_model_files) {
                None => Part::Model,
                Some(0) => Part::Masters,
                Some(_) => Part::Optimizer,
            };
            for name in layout.names() {
                if places.insert((part, name.to_string()), file).is_some() {
                    return Err(Error::Record {
                        file: MODEL.to_string(),
                        tensor: name.to_string(),
                        reason: "expected each name once, found it twice".to_string(),
                    });
                }
            }
        }
        Ok(Self { step, files, places, index })
    }

    /// The step of the checkpoint.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Bytes of all files of tensors.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len_bytes).sum()
    }

    /// Bytes of all values.
    pub(super) fn value_bytes(&self) -> u64 {
        self.files.iter().map(TensorLayout::value_bytes).sum()
    }

    /// The files of tensors.
    pub(super) fn files(&self) -> &[TensorLayout] {
        &self.files
    }

    /// The index of the model's files, where there are several.
    pub(super) fn index(&self) -> Option<&str> {
        self.index.as_deref()
    }

    /// Where elements of a tensor lie, from the element `first` on, `len_bytes` bytes of them: the
    /// file's index, and the byte in it.
    ///
    /// # Errors
    /// [`Error::Record`] if the checkpoint has no such tensor, or the tensor no such elements.
    pub(super) fn locate(
        &self,
        (part, name): (Part, &str),
        first: usize,
        len_bytes: usize,
    ) -> Result<(usize, u64), Error> {
        let refuse = |file: &str, reason: String| Error::Record {
            file: file.to_string(),
            tensor: name.to_string(),
            reason,
        };
        let file = self.places.get(&(part, name.to_string())).copied();
        let found = file.and_then(|file| Some((file, self.files[file].find(name)?)));
        let Some((file, (spec, start))) = found else {
            return Err(refuse(&format!("{part:?}"), "the checkpoint has no such tensor".into()));
        };
        let first_byte = first * spec.dtype.size_bytes();
        let (end, expected) = (first_byte + len_bytes, spec.len_bytes());
        if end > expected {
            let reason = format!("{spec} takes {expected} bytes, found {end}");
            return Err(refuse(&self.files[file].file, reason));
        }
        Ok((file, start + first_byte as u64))
    }
}

/// The model's files and, if there are several, their index.
fn model_files(
    specs: &[TensorSpec],
    max_shard_bytes: u64,
) -> Result<(Vec<TensorLayout>, Option<String>), Error> {
    let total_bytes: u64 = specs.iter().map(|spec| spec.len_bytes() as u64).sum();
    if total_bytes <= max_shard_bytes {
        return Ok((vec![TensorLayout::new(MODEL, specs)?], None));
    }
    let mut shards: Vec<Vec<TensorSpec>> = vec![Vec::new()];
    let mut shard_bytes = 0;
    for spec in in_file_order(specs) {
        let bytes = spec.len_bytes() as u64;
        let last = shards.len() - 1;
        if shard_bytes + bytes > max_shard_bytes && !shards[last].is_empty() {
            shards.push(Vec::new());
            shard_bytes = 0;
        }
        let last = shards.len() - 1;
        shards[last].push(spec.clone());
        shard_bytes += bytes;
    }
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    let mut files = Vec::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = model_shard(number + 1, count);
        weight_map.extend(shard.iter().map(|spec| (spec.name.clone(), name.clone())));
        files.push(TensorLayout::new(&name, shard)?);
    }
    let index = json!({"metadata": {"total_size": total_bytes}, "weight_map": weight_map});
    let index = serde_json::to_string_pretty(&index).expect("text and integers are JSON");
    Ok((files, Some(index)))
}
