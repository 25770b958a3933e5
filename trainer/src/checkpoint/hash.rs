//! One hash over a model's masters: two runs agree bit for bit if and only if their hashes do.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::layout::MASTERS;
use super::{Error, TensorFile, TensorView};

/// The hash of all masters of a checkpoint, in lower-case hexadecimal.
///
/// The manifest is not consulted, so the hash can be had of a folder whose other files are gone.
/// Values are read through the map of the file and never held in memory at once.
///
/// # Errors
/// [`Error::NoMasters`] if the folder is a plain Hugging Face model; [`Error::Header`] and others
/// if the file cannot be read.
pub fn hash_masters(folder: &Path) -> Result<String, Error> {
    let path = folder.join(MASTERS);
    if folder.is_dir() && !path.exists() {
        return Err(Error::NoMasters { folder: folder.to_path_buf() });
    }
    hash_tensors(TensorFile::open(&path)?.tensors())
}

/// The hash of tensors given in ascending order of their names, in lower-case hexadecimal.
///
/// For each tensor: the length of its name in bytes, the name, its dtype's name (padded with
/// zeros to 8 bytes), the number of dims, each dim, and the values; numbers are `u64` and all is
/// little-endian. Lengths come before what they measure, so no two lists share their input.
///
/// # Errors
/// [`Error::HashOrder`] if names do not ascend.
pub fn hash_tensors<'a>(tensors: impl Iterator<Item = TensorView<'a>>) -> Result<String, Error> {
    let mut hasher = Sha256::new();
    let mut last: Option<String> = None;
    for TensorView { spec, bytes } in tensors {
        if let Some(first) = last.filter(|last| *last >= spec.name) {
            return Err(Error::HashOrder { first, second: spec.name.clone() });
        }
        let mut dtype = [0; 8];
        dtype[..spec.dtype.name().len()].copy_from_slice(spec.dtype.name().as_bytes());
        hasher.update((spec.name.len() as u64).to_le_bytes());
        hasher.update(spec.name.as_bytes());
        hasher.update(dtype);
        hasher.update((spec.shape.len() as u64).to_le_bytes());
        for &dim in &spec.shape {
            hasher.update((dim as u64).to_le_bytes());
        }
        hasher.update(bytes);
        last = Some(spec.name.clone());
    }
    Ok(hex(hasher.finalize().as_slice()))
}

/// Lower-case hexadecimal digits of `bytes`.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
