//! Safetensors files, mapped into memory and read in place.
#![allow(unsafe_code, reason = "mapping a file into memory")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde::Deserialize;

use super::layout::{MODEL, MODEL_INDEX};
use super::{Dtype, Error, Mismatch, TensorSpec};

/// An open safetensors file, or several that an index makes one. Values stay on the disk until they
/// are touched.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    maps: Vec<Mmap>,
    tensors: BTreeMap<String, Entry>,
}

/// A tensor, and where it lies.
#[derive(Debug)]
struct Entry {
    spec: TensorSpec,
    /// The map's index.
    map: usize,
    range: Range<usize>,
}

/// `model.safetensors.index.json`, of which only this matters.
#[derive(Deserialize)]
struct Index {
    /// By tensor: its file, beside the index.
    weight_map: BTreeMap<String, String>,
}

/// One tensor of an open file, or of memory.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Name, element type and shape.
    pub spec: &'a TensorSpec,
    /// Row-major, little-endian values. In a file that Grove wrote they are aligned to the
    /// element size.
    pub bytes: &'a [u8],
}

impl TensorFile {
    /// Opens a file; its header is read and checked against its size, its values are not.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened, [`Error::Header`] if it is no safetensors file,
    /// [`Error::UnknownDtype`] if Grove does not use the element type of a tensor.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_without(path, |_| false)
    }

    /// Opens a file as [`TensorFile::open`] does, as if it did not have the tensors with these
    /// names; they may have any element type.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn open_without(path: &Path, is_unwanted: impl Fn(&str) -> bool) -> Result<Self, Error> {
        let mut opened = Self::empty(path);
        opened.add(path, |name| !is_unwanted(name))?;
        Ok(opened)
    }

    /// Opens the weights of a Hugging Face folder: those that `model.safetensors.index.json` names
    /// if it is there, else `model.safetensors`.
    ///
    /// # Errors
    /// As [`TensorFile::open`] of each file; [`Error::Json`] if the index cannot be understood, names
    /// a file that is not beside it, or a tensor that is not in its file.
    pub fn open_model(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(MODEL_INDEX);
        if !path.exists() {
            return Self::open(&folder.join(MODEL));
        }
        let wrong = |reason: String| Error::Json { path: path.clone(), reason };
        let text = fs::read(&path).map_err(|cause| Error::Io {
            action: "read",
            path: path.clone(),
            cause,
        })?;
        let index: Index =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        let files: BTreeSet<&String> = index.weight_map.values().collect();
        let mut opened = Self::empty(&path);
        for file in files {
            let is_plain = Path::new(file).file_name().is_some_and(|name| name == file.as_str());
            if !is_plain {
                return Err(wrong(format!("{file:?} is not the name of a file beside it")));
            }
            opened.add(&folder.join(file), |name| index.weight_map.get(name) == Some(file))?;
        }
        if let Some((name, file)) =
            index.weight_map.iter().find(|(name, _)| !opened.tensors.contains_key(*name))
        {
            return Err(wrong(format!("tensor {name:?} is not in {file:?}")));
        }
        Ok(opened)
    }

    fn empty(path: &Path) -> Self {
        Self { path: path.to_path_buf(), maps: Vec::new(), tensors: BTreeMap::new() }
    }

    /// Maps one more file and takes its tensors of the wanted names.
    fn add(&mut self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), Error> {
        let map = map_file(path)?;
        let (header_bytes, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            Error::Header { path: path.to_path_buf(), reason: error.to_string() }
        })?;
        // Offsets in the header count from its end; the length itself takes 8 bytes before it.
        let start = 8 + header_bytes;
        for name in metadata.offset_keys() {
            if !wanted(&name) {
                continue;
            }
            let info = metadata.info(&name).expect("the name comes from the same header");
            let dtype = dtype_of(info.dtype).ok_or_else(|| Error::UnknownDtype {
                path: path.to_path_buf(),
                tensor: name.clone(),
                found: format!("{:?}", info.dtype),
            })?;
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            let spec = TensorSpec { name: name.clone(), dtype, shape: info.shape.clone() };
            self.tensors.insert(name, Entry { spec, map: self.maps.len(), range });
        }
        self.maps.push(map);
        Ok(())
    }

    /// Where the file is, or the index of several.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, by ascending name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.tensors.values().map(|entry| self.view(entry))
    }

    /// One tensor.
    ///
    /// # Errors
    /// [`Error::NoTensor`] if there is none of this name.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>, Error> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::NoTensor {
            path: self.path.clone(),
            tensor: name.to_string(),
            count: self.tensors.len(),
        })?;
        Ok(self.view(entry))
    }

    /// Checks that the file has the expected tensors and no others.
    ///
    /// # Errors
    /// [`Error::Names`] with all that is missing, extra, or of another dtype or shape.
    pub fn check_names(&self, expected: &[TensorSpec]) -> Result<(), Error> {
        let mut mismatches = BTreeMap::new();
        for (name, Entry { spec: found, .. }) in &self.tensors {
            mismatches.insert(name.clone(), Mismatch::Extra { found: found.clone() });
        }
        for expected in expected {
            let mismatch = match self.tensors.get(&expected.name).map(|entry| &entry.spec) {
                Some(found) if found == expected => {
                    mismatches.remove(&expected.name);
                    continue;
                }
                Some(found) => {
                    Mismatch::Differs { expected: expected.clone(), found: found.clone() }
                }
                None => Mismatch::Missing { expected: expected.clone() },
            };
            mismatches.insert(expected.name.clone(), mismatch);
        }
        if mismatches.is_empty() {
            return Ok(());
        }
        let mismatches = mismatches.into_values().collect();
        Err(Error::Names { path: self.path.clone(), mismatches })
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> TensorView<'a> {
        TensorView { spec: &entry.spec, bytes: &self.maps[entry.map][entry.range.clone()] }
    }
}

/// Maps a whole file for reading.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened or mapped.
pub(crate) fn map_file(path: &Path) -> Result<Mmap, Error> {
    let open = || {
        let file = File::open(path)?;
        // SAFETY: a published checkpoint is never written again, only removed, and a removed
        // file stays valid while it is mapped. A foreign program that cuts the file while it is
        // mapped can end this process by a signal; no file format can prevent that.
        unsafe { Mmap::map(&file) }
    };
    open().map_err(|cause| Error::Io { action: "map", path: path.to_path_buf(), cause })
}

fn dtype_of(dtype: safetensors::Dtype) -> Option<Dtype> {
    match dtype {
        safetensors::Dtype::U8 => Some(Dtype::U8),
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::F64 => Some(Dtype::F64),
        _ => None,
    }
}
