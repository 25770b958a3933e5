//! A model becomes a Hugging Face folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::convert::convert;
use super::folder::{CONFIG, INDEX, WEIGHTS};
use super::import::staging_folder;
use super::{Error, Source};
use crate::checkpoint::{Dtype, ExtraFile, TensorSpec};
use crate::model::config::Precision;

/// Values in a safetensors file begin at a multiple of this.
const HEADER_ALIGNMENT: usize = 8;

/// How a model is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// The type of the weights: [`Precision::Bf16`] or [`Precision::Fp32`].
    pub dtype: Precision,
    /// The most bytes of tensors in one file; a larger tensor has a file of its own.
    pub max_shard_bytes: u64,
}

/// Writes a source into the new folder `out`, as transformers' `save_pretrained` would:
/// `config.json`, one `model.safetensors` or shards with an index, and what goes with the model.
///
/// A tensor at a time is in memory; the folder appears whole, by a rename.
///
/// # Errors
/// [`Error::NoArchitecture`] for a model that transformers cannot compute, [`Error::Exists`] if `out`
/// is there, and whatever reading and writing may meet.
pub fn export(source: &Source, out: &Path, options: ExportOptions) -> Result<(), Error> {
    let form = source.config.spec().residual;
    if !form.is_plain() {
        return Err(Error::NoArchitecture { path: source.path.clone(), form });
    }
    if out.exists() {
        return Err(Error::Exists { path: out.to_owned() });
    }
    let staging = staging_folder(out);
    let written = write_folder(source, &staging, options).and_then(|()| {
        at("rename", out, || {
            fs::rename(&staging, out)?;
            let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
        })
    });
    if written.is_err() {
        // What is left is not taken for a model: best effort.
        let _ = fs::remove_dir_all(&staging);
    }
    written
}

fn write_folder(source: &Source, folder: &Path, options: ExportOptions) -> Result<(), Error> {
    // Left by an export that was killed.
    let _ = fs::remove_dir_all(folder);
    at("make", folder, || fs::create_dir_all(folder))?;
    let dtype = match options.dtype {
        Precision::Bf16 => Dtype::Bf16,
        Precision::Fp32 => Dtype::F32,
        Precision::Fp64 => Dtype::F64,
    };
    let stored = |spec: &TensorSpec| TensorSpec { dtype, ..spec.clone() };
    let specs: Vec<TensorSpec> = source.specs().iter().map(stored).collect();
    let shards = shards(&specs, options.max_shard_bytes);
    let names = shard_names(shards.len());
    for (name, specs) in names.iter().zip(&shards) {
        write_tensors(source, &folder.join(name), specs)?;
    }
    if let [_, _, ..] = *shards {
        write_text(&folder.join(INDEX), &index(&names, &shards))?;
    }
    for file in &source.files {
        match file {
            ExtraFile::Content { name, bytes } => write_bytes(&folder.join(name), bytes)?,
            ExtraFile::Copy { from } => {
                let name = from.file_name().unwrap_or_default();
                let copied = folder.join(name);
                at("copy", from, || fs::copy(from, &copied).map(|_| ()))?;
            }
        }
    }
    write_text(&folder.join(CONFIG), &source.config.to_hf_json(options.dtype))?;
    at("write", folder, || File::open(folder)?.sync_all())
}

/// Tensors in order, as many in a shard as fit.
fn shards(specs: &[TensorSpec], max_bytes: u64) -> Vec<Vec<&TensorSpec>> {
    let mut shards: Vec<Vec<&TensorSpec>> = Vec::new();
    let mut room = 0;
    for spec in specs {
        let bytes = spec.len_bytes() as u64;
        match shards.last_mut() {
            Some(shard) if bytes <= room => {
                shard.push(spec);
                room -= bytes;
            }
            _ => {
                shards.push(vec![spec]);
                room = max_bytes.saturating_sub(bytes);
            }
        }
    }
    shards
}

fn shard_names(count: usize) -> Vec<String> {
    match count {
        1 => vec![WEIGHTS.to_owned()],
        _ => (1..=count).map(|n| format!("model-{n:05}-of-{count:05}.safetensors")).collect(),
    }
}

fn index(names: &[String], shards: &[Vec<&TensorSpec>]) -> String {
    let entries = names
        .iter()
        .zip(shards)
        .flat_map(|(name, specs)| specs.iter().map(move |spec| (spec.name.clone(), name.clone())));
    let weight_map: BTreeMap<String, String> = entries.collect();
    let total: usize = shards.iter().flatten().map(|spec| spec.len_bytes()).sum();
    format!("{:#}\n", json!({ "metadata": { "total_size": total }, "weight_map": weight_map }))
}

/// Streams tensors into one safetensors file.
fn write_tensors(source: &Source, path: &Path, specs: &[&TensorSpec]) -> Result<(), Error> {
    let failed = |cause| Error::Io { action: "write", path: path.to_owned(), cause };
    let mut out = BufWriter::new(File::create(path).map_err(failed)?);
    let header = header(specs);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(&header).map_err(failed)?;
    for spec in specs {
        let tensor = source.tensor(&spec.name)?;
        let bytes = convert(&tensor.bytes, tensor.spec.dtype, spec.dtype);
        out.write_all(&bytes).map_err(failed)?;
    }
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)
}

fn header(specs: &[&TensorSpec]) -> Vec<u8> {
    // Hugging Face's loader refuses files whose metadata does not name a framework.
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut offset = 0;
    for TensorSpec { name, dtype, shape } in specs {
        let end = offset + shape.iter().product::<usize>() * dtype.size_bytes();
        let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [offset, end] });
        header.insert(name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
    header
}

fn write_text(path: &PathBuf, text: &str) -> Result<(), Error> {
    write_bytes(path, text.as_bytes())
}

fn write_bytes(path: &PathBuf, bytes: &[u8]) -> Result<(), Error> {
    at("write", path, || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    })
}

/// Does `work` and names what was tried with which file if it fails.
fn at(
    action: &'static str,
    path: &Path,
    work: impl FnOnce() -> io::Result<()>,
) -> Result<(), Error> {
    work().map_err(|cause| Error::Io { action, path: path.to_owned(), cause })
}
