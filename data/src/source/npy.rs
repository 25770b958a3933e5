//! NumPy's array file, for one-dimensional arrays of integers.
//!
//! Magic, version, length of the header, and the header itself: a Python dictionary of `descr`,
//! `fortran_order` and `shape`. See numpy.lib.format.

use std::path::Path;

use super::flat::{FlatDtype, FlatFile, Layout};
use crate::error::{Error, Result, SourceError};
use crate::mapped::MappedFile;

pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// Opens an array of token ids.
///
/// # Errors
/// [`SourceError::Format`] with what was found if it is another kind of array,
/// [`SourceError::Damaged`] if the file is cut off.
pub(super) fn open(path: &Path, vocab_size: Option<u32>) -> Result<FlatFile> {
    let map = MappedFile::open(path, "open the NumPy array")?;
    let refuse = |cause: String| Error::from(SourceError::Format { path: path.to_owned(), cause });
    let (start_byte, header) =
        split_header(&map).ok_or_else(|| refuse("its NumPy header is cut off".to_owned()))?;
    let descr = quoted_value(header, "descr").unwrap_or_default();
    let dtype = |size_bytes, is_signed| FlatDtype { size_bytes, is_signed };
    let dtype = match descr {
        "|u1" => dtype(1, false),
        "|i1" => dtype(1, true),
        "<u2" => dtype(2, false),
        "<i2" => dtype(2, true),
        "<u4" => dtype(4, false),
        "<i4" => dtype(4, true),
        "<u8" => dtype(8, false),
        "<i8" => dtype(8, true),
        _ => return Err(refuse(format!("its dtype is `{descr}`, not little-endian integers"))),
    };
    let Some(num_tokens) = length_of_shape(header) else {
        return Err(refuse(format!("its shape is not one-dimensional: {}", header.trim())));
    };
    let layout = Layout { start_byte, dtype, num_tokens, documents: None };
    FlatFile::new(path, map, layout, vocab_size)
}

/// Where the data starts, and the header's dictionary.
fn split_header(bytes: &[u8]) -> Option<(u64, &str)> {
    let version = *bytes.get(6)?;
    let (length, start) = match version {
        1 => (usize::from(u16::from_le_bytes(*bytes.get(8..)?.first_chunk()?)), 10),
        _ => (u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?) as usize, 12),
    };
    let end = start + length;
    Some((end as u64, std::str::from_utf8(bytes.get(start..end)?).ok()?))
}

/// The text behind `'key':`.
fn value<'h>(header: &'h str, key: &str) -> Option<&'h str> {
    let (_, behind) = header.split_once(&format!("'{key}':"))?;
    Some(behind.trim_start())
}

fn quoted_value<'h>(header: &'h str, key: &str) -> Option<&'h str> {
    value(header, key)?.strip_prefix('\'')?.split('\'').next()
}

/// N of a shape `(N,)`.
fn length_of_shape(header: &str) -> Option<u64> {
    let (inside, _) = value(header, "shape")?.strip_prefix('(')?.split_once(')')?;
    inside.trim().strip_suffix(',')?.trim().parse().ok()
}
