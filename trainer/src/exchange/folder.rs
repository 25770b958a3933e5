//! A Hugging Face folder: `config.json`, one safetensors file or shards with an index, and what
//! stands beside them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Error;
use super::matching::{Matching, is_buffer, parameters};
use crate::checkpoint::{ExtraFile, TensorFile, TensorSpec, stays_below};
use crate::model::config::ModelConfig;

pub(super) const CONFIG: &str = "config.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const GENERATION: &str = "generation_config.json";

/// Files that go with a model wherever it goes.
const COMPANIONS: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    GENERATION,
];

/// Keys of `config.json` that say how to generate, and that Grove does not keep there.
const GENERATION_KEYS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// Tensors in files, each under our name.
#[derive(Debug)]
pub(super) struct StoredTensors {
    pub(super) files: Vec<TensorFile>,
    /// Our name to the number of the file and the name in it.
    places: BTreeMap<String, (usize, String)>,
    /// Whether the model is to have biases and the files have none: then all are 0.
    pub(super) lacks_biases: bool,
}

impl StoredTensors {
    /// Finds all parameters of a model in some files, and returns them in the model's order.
    ///
    /// # Errors
    /// [`Error::Tensors`] with all that is missing, extra, or of another shape.
    pub(super) fn new(
        path: &Path,
        config: &ModelConfig,
        files: Vec<TensorFile>,
    ) -> Result<(Self, Vec<TensorSpec>), Error> {
        let num_stored = files.iter().map(|file| file.names().count()).sum();
        let expected = parameters(path, config, num_stored)?;
        let mut matching = Matching::new(&expected);
        for (index, file) in files.iter().enumerate() {
            for view in file.tensors() {
                matching.add(view.spec, (index, view.spec.name.clone()));
            }
        }
        check_head(&mut matching, &files);
        let lacks_biases = matching.do_without_biases();
        let places = matching.finish(path)?;
        Ok((Self { files, places, lacks_biases }, expected))
    }

    /// The file and the name in it of one of our parameters.
    pub(super) fn place(&self, name: &str) -> Option<(&TensorFile, &str)> {
        let (file, stored) = self.places.get(name)?;
        Some((&self.files[*file], stored))
    }
}

/// A head beside a model that has none of its own must be its embedding.
fn check_head(matching: &mut Matching<'_, (usize, String)>, files: &[TensorFile]) {
    let Some((head_file, head)) = &matching.spare_head else { return };
    let names = ["model.embed_tokens.weight", "transformer.wte.weight"];
    let embedding = names.iter().find_map(|name| matching.places.get(*name));
    let equal = embedding.is_some_and(|(file, name)| {
        let views = (files[*head_file].get(head), files[*file].get(name));
        matches!(views, (Ok(head), Ok(embedding)) if head.bytes == embedding.bytes)
    });
    if !equal {
        matching.problem(
            "lm_head.weight differs from the embedding, though tie_word_embeddings is true; set \
             it to false in config.json"
                .to_owned(),
        );
    }
}

/// The text of a folder's `config.json`.
///
/// # Errors
/// [`Error::NoModel`] if there is none, [`Error::Io`] if it cannot be read.
pub(super) fn config_text(folder: &Path) -> Result<String, Error> {
    let path = folder.join(CONFIG);
    if !path.is_file() {
        let reason = "it has no config.json".to_owned();
        return Err(Error::NoModel { path: folder.to_owned(), reason });
    }
    fs::read_to_string(&path).map_err(|cause| Error::Io { action: "read", path, cause })
}

/// Opens the files of tensors of a folder, without buffers.
///
/// # Errors
/// [`Error::NoModel`] if there are none, [`Error::Index`] if an index is wrong or leads out of the
/// folder, and those of [`TensorFile::open`].
pub(super) fn open_weights(folder: &Path) -> Result<Vec<TensorFile>, Error> {
    let single = folder.join(WEIGHTS);
    if single.is_file() {
        return Ok(vec![TensorFile::open_without(&single, is_buffer)?]);
    }
    let index = folder.join(INDEX);
    if !index.is_file() {
        let pickled = folder.join("pytorch_model.bin").exists();
        let reason = if pickled {
            "pytorch_model.bin holds code, which Grove does not run; save the model with \
             transformers' save_pretrained, which writes safetensors"
        } else {
            "it has neither model.safetensors nor model.safetensors.index.json"
        };
        return Err(Error::NoModel { path: folder.to_owned(), reason: reason.to_owned() });
    }
    open_shards(folder, &index)
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(folder: &Path, path: &Path) -> Result<Vec<TensorFile>, Error> {
    let refuse = |reason: String| Error::Index { path: path.to_owned(), reason };
    let text = fs::read(path);
    let text = text.map_err(|cause| Error::Io { action: "read", path: path.to_owned(), cause })?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
    let mut shards: Vec<&str> = index.weight_map.values().map(String::as_str).collect();
    shards.sort_unstable();
    shards.dedup();
    if let Some(shard) = shards.iter().find(|shard| !stays_below(shard)) {
        return Err(refuse(format!("shard {shard:?} is not in the folder")));
    }
    if let Some(shard) = shards.iter().find(|shard| !folder.join(shard).is_file()) {
        return Err(refuse(format!("shard {shard} is not there")));
    }
    let mut files = Vec::new();
    for shard in shards {
        let file = TensorFile::open_without(&folder.join(shard), is_buffer)?;
        let of_shard = |name: &&str| index.weight_map.get(*name).map(String::as_str) == Some(shard);
        if let Some(name) = file.names().find(|name| !of_shard(name)) {
            return Err(refuse(format!(
                "{shard} holds {name}, of which the index does not say so"
            )));
        }
        files.push(file);
    }
    let known = |name: &str| files.iter().any(|file| file.get(name).is_ok());
    let lost = index.weight_map.keys().find(|name| !known(name) && !is_buffer(name));
    match lost {
        Some(name) => Err(refuse(format!("{name} is not in {}", index.weight_map[name]))),
        None => Ok(files),
    }
}

/// The tokenizer's files and `generation_config.json`, made from `config.json` if only that knows.
pub(super) fn companions(folder: &Path, config_text: &str) -> Vec<ExtraFile<'static>> {
    let paths = COMPANIONS.iter().map(|name| folder.join(name));
    let present = paths.filter(|path: &PathBuf| path.is_file());
    let mut files: Vec<_> = present.map(|from| ExtraFile::Copy { from }).collect();
    if !folder.join(GENERATION).is_file() {
        let config: Map<String, Value> = serde_json::from_str(config_text).unwrap_or_default();
        let known = GENERATION_KEYS.iter().filter_map(|&key| Some((key, config.get(key)?.clone())));
        files.extend(generation_config(known.collect()));
    }
    files
}

/// A `generation_config.json` with these token ids; none if none is known.
pub(super) fn generation_config(ids: BTreeMap<&str, Value>) -> Option<ExtraFile<'static>> {
    let known: Map<String, Value> = ids
        .into_iter()
        .filter(|(_, id)| !id.is_null())
        .map(|(key, id)| (key.to_owned(), id))
        .collect();
    if known.is_empty() {
        return None;
    }
    let text = format!("{:#}\n", json!(known));
    let bytes = Cow::Owned(text.into_bytes());
    Some(ExtraFile::Content { name: GENERATION.to_owned(), bytes })
}
