//! Files, folders and globs to a list of input files in a fixed order.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::error::{Error, InputError, Result};

/// Bytes hashed at each of three places of a file for its fingerprint.
const SAMPLE_BYTES: u64 = 64 << 10;

/// What a file holds, once decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputKind {
    /// Plain text: `.txt`, `.text`, `.md`, or any name that was given without a folder or glob.
    Text,
    /// One JSON object a line: `.jsonl`, `.ndjson`, `.json`.
    JsonLines,
    /// Apache Parquet: `.parquet`.
    Parquet,
}

/// How a file is compressed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// One file to read, and what identifies its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Where it lies, as found from what was given.
    pub path: PathBuf,
    /// What it holds, by the last ending of its name before `.gz` or `.zst`.
    pub kind: InputKind,
    pub(crate) compression: Compression,
    /// Size in bytes, compressed as it may be.
    pub num_bytes: u64,
    /// XXH3-64 of the size and of 64 KiB at the start, the middle and the end: it tells a changed
    /// file without reading it, unless the change keeps the size and misses these places.
    pub fingerprint: u64,
}

impl InputFile {
    /// A file to be read as plain text whatever its name; `action` names the opening.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read.
    pub(crate) fn plain(path: &Path, action: &'static str) -> Result<Self> {
        let (num_bytes, fingerprint) = sample(path).map_err(Error::io(action, path))?;
        let (kind, compression) = (InputKind::Text, Compression::None);
        Ok(Self { path: path.to_owned(), kind, compression, num_bytes, fingerprint })
    }
}

/// The files that `inputs` name, in the order given; what a folder or glob holds comes sorted by
/// path.
///
/// A folder stands for the files below it, at any depth, whose names end in a known way (`.txt`,
/// `.text`, `.md`, `.jsonl`, `.ndjson`, `.json`, `.parquet`, each also with `.gz` or `.zst`);
/// hidden files and folders are left out. A file that is named itself, or by a glob, is taken
/// whatever its ending, as plain text if that is unknown. A file named twice is read twice.
///
/// # Errors
/// [`InputError::NoInput`] if a folder or glob yields nothing, [`InputError::Glob`] if a pattern
/// is malformed, [`Error::Io`] if something cannot be read, [`Error::NotAFile`] for a pipe or
/// device.
pub fn list_inputs<S: AsRef<str>>(inputs: &[S]) -> Result<Vec<InputFile>> {
    let mut files = Vec::new();
    for input in inputs {
        let input = input.as_ref();
        let path = Path::new(input);
        if path.is_file() {
            files.push(describe(path)?);
            continue;
        }
        let found = if path.is_dir() {
            let mut found = Vec::new();
            walk(path, &mut found)?;
            found
        } else if input.contains(['*', '?', '[']) {
            expand(input)?
        } else {
            // Opening it gives the operating system's reason.
            let cause = path.metadata().map(|_| path.to_owned());
            let path = cause.map_err(Error::io("open the input", path))?;
            return Err(Error::NotAFile { path });
        };
        if found.is_empty() {
            return Err(InputError::NoInput { input: input.to_owned() }.into());
        }
        for path in found {
            files.push(describe(&path)?);
        }
    }
    if files.is_empty() {
        return Err(InputError::NoInput { input: String::new() }.into());
    }
    Ok(files)
}

/// Files below a folder with a known ending, sorted by path.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let read = std::fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let entries = read.map_err(Error::io("read the folder", folder))?;
    let mut paths: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).collect();
    paths.sort_unstable();
    for path in paths {
        let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes()[0] == b'.');
        if is_hidden {
            continue;
        }
        if path.is_dir() {
            walk(&path, found)?;
        } else if kind_of(&path).0.is_some() && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

fn expand(pattern: &str) -> Result<Vec<PathBuf>> {
    let refuse = |cause: String| InputError::Glob { pattern: pattern.to_owned(), cause };
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
    let paths = glob::glob_with(pattern, options).map_err(|cause| refuse(cause.to_string()))?;
    let paths: std::result::Result<Vec<PathBuf>, _> = paths.collect();
    let mut paths = paths.map_err(|cause| refuse(cause.to_string()))?;
    paths.retain(|path| path.is_file());
    paths.sort_unstable();
    Ok(paths)
}

/// Kind (`None` if the ending is unknown) and compression, by the name alone.
fn kind_of(path: &Path) -> (Option<InputKind>, Compression) {
    let ending = |path: &Path| {
        path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default()
    };
    let (compression, path) = match ending(path).as_str() {
        "gz" => (Compression::Gzip, path.with_extension("")),
        "zst" => (Compression::Zstd, path.with_extension("")),
        _ => (Compression::None, path.to_owned()),
    };
    let kind = match ending(&path).as_str() {
        "txt" | "text" | "md" => Some(InputKind::Text),
        "jsonl" | "ndjson" | "json" => Some(InputKind::JsonLines),
        "parquet" => Some(InputKind::Parquet),
        _ => None,
    };
    (kind, compression)
}

/// Describes one file, reading its three samples.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub(crate) fn describe(path: &Path) -> Result<InputFile> {
    let (kind, compression) = kind_of(path);
    let kind = kind.unwrap_or(InputKind::Text);
    let (num_bytes, fingerprint) = sample(path).map_err(Error::io("read the input", path))?;
    Ok(InputFile { path: path.to_owned(), kind, compression, num_bytes, fingerprint })
}

/// Size and fingerprint of a file.
pub(crate) fn sample(path: &Path) -> std::io::Result<(u64, u64)> {
    let mut file = File::open(path)?;
    let num_bytes = file.metadata()?.len();
    let mut sampled = num_bytes.to_le_bytes().to_vec();
    let last = num_bytes.saturating_sub(SAMPLE_BYTES);
    for start in [0, last / 2, last] {
        file.seek(SeekFrom::Start(start))?;
        file.by_ref().take(SAMPLE_BYTES).read_to_end(&mut sampled)?;
    }
    Ok((num_bytes, XxHash3_64::oneshot(&sampled)))
}
