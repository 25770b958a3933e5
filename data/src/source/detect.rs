//! Which format a path holds.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{FlatFile, Shards, Source, megatron, npy};
use crate::dataset::MANIFEST_NAME;
use crate::error::{Error, Result, SourceError};
use crate::token_file::TokenFile;

/// Bytes that tell the formats apart.
const HEAD_BYTES: u64 = 12;

/// A way to store tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A file written by [`crate::TokenWriter`]; begins with `GROVETOK`.
    TokenFile,
    /// A folder written by [`crate::tokenize_corpus`]; holds `manifest.json`.
    Shards,
    /// nanoGPT's `train.bin`: 16-bit ids without a header. Any `.bin` that is nothing else.
    NanoGpt,
    /// llm.c's: 256 32-bit integers of header (magic 20240520 with 16-bit ids, or 20240801 with
    /// 32-bit ids), then the ids.
    LlmC,
    /// Megatron-LM's indexed dataset: `NAME.bin` with `NAME.idx`, which begins with `MMIDIDX`.
    Megatron,
    /// A one-dimensional NumPy array of integers; begins with `\x93NUMPY`.
    Npy,
}

/// What the caller knows better than the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceOptions {
    /// The format; `None` to tell it by name and first bytes.
    pub format: Option<Format>,
    /// Every id must be below this, for formats that do not record it.
    pub vocab_size: Option<u32>,
}

impl Source {
    /// Opens token data as [`Source::open`] does, with what the caller knows of it.
    ///
    /// # Errors
    /// Those of [`Source::open`].
    pub fn open_with(path: impl AsRef<Path>, options: &SourceOptions) -> Result<Self> {
        let path = path.as_ref();
        let format = options.format.map_or_else(|| detect(path), Ok)?;
        let flat = |file: FlatFile| Self::Flat(Arc::new(file));
        let vocab_size = options.vocab_size;
        Ok(match format {
            Format::TokenFile => Self::Tokens(Arc::new(TokenFile::open(path)?)),
            Format::Shards => Self::Shards(Arc::new(Shards::open(path)?)),
            Format::NanoGpt => flat(FlatFile::open_nano_gpt(path, vocab_size)?),
            Format::LlmC => flat(FlatFile::open_llm_c(path, vocab_size)?),
            Format::Megatron => flat(megatron::open(path, vocab_size)?),
            Format::Npy => flat(npy::open(path, vocab_size)?),
        })
    }
}

fn detect(path: &Path) -> Result<Format> {
    let refuse = |cause: &str| {
        Err(Error::from(SourceError::Format { path: path.to_owned(), cause: cause.to_owned() }))
    };
    if path.is_dir() {
        if path.join(MANIFEST_NAME).is_file() {
            return Ok(Format::Shards);
        }
        return refuse("the folder has no manifest.json, so its tokenizing was not finished");
    }
    // Megatron names a data set by the common part of its two files.
    if megatron::files_of(path).is_some() {
        return Ok(Format::Megatron);
    }
    let metadata = path.metadata().map_err(Error::io("open the tokens", path))?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
    read.map_err(Error::io("open the tokens", path))?;
    let ending = path.extension().unwrap_or_default();
    match head.as_slice() {
        [] => Err(Error::EmptyFile { path: path.to_owned() }),
        head if head.starts_with(npy::MAGIC) => Ok(Format::Npy),
        head if super::flat::llm_c_dtype(head).is_some() => Ok(Format::LlmC),
        head if head.starts_with(b"GROVETOK") => Ok(Format::TokenFile),
        _ if ending == "bin" => Ok(Format::NanoGpt),
        // Its own message says what a token file begins with.
        _ => Ok(Format::TokenFile),
    }
}

/// The path with another ending.
pub(super) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}
