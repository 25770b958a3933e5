//! A safetensors file, mapped into memory and read in place.
#![allow(unsafe_code, reason = "mapping a file into memory")]

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;

use super::{Dtype, Error, Mismatch, TensorSpec};

/// An open safetensors file. Values stay on the disk until they are touched.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    tensors: BTreeMap<String, (TensorSpec, Range<usize>)>,
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
        let map = map_file(path)?;
        let (header_bytes, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            Error::Header { path: path.to_path_buf(), reason: error.to_string() }
        })?;
        // Offsets in the header count from its end; the length itself takes 8 bytes before it.
        let start = 8 + header_bytes;
        let mut tensors = BTreeMap::new();
        for name in metadata.offset_keys().into_iter().filter(|name| !is_unwanted(name)) {
            let info = metadata.info(&name).expect("the name comes from the same header");
            let dtype = dtype_of(info.dtype).ok_or_else(|| Error::UnknownDtype {
                path: path.to_path_buf(),
                tensor: name.clone(),
                found: format!("{:?}", info.dtype),
            })?;
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            let spec = TensorSpec { name: name.clone(), dtype, shape: info.shape.clone() };
            tensors.insert(name, (spec, range));
        }
        Ok(Self { path: path.to_path_buf(), map, tensors })
    }

    /// Where the file is.
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
        for (name, (found, _)) in &self.tensors {
            mismatches.insert(name.clone(), Mismatch::Extra { found: found.clone() });
        }
        for expected in expected {
            let mismatch = match self.tensors.get(&expected.name) {
                Some((found, _)) if found == expected => {
                    mismatches.remove(&expected.name);
                    continue;
                }
                Some((found, _)) => {
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

    fn view<'a>(&'a self, (spec, range): &'a (TensorSpec, Range<usize>)) -> TensorView<'a> {
        TensorView { spec, bytes: &self.map[range.clone()] }
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
