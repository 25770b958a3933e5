//! What a folder of shards says of itself: counts, hashes, tokenizer, inputs.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, SourceError};
use crate::input::InputFile;
use crate::publication::Publication;

/// Name of the manifest in its folder; it is written last.
pub(crate) const MANIFEST_NAME: &str = "manifest.json";

/// What became of the records of the inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Records read: lines, rows, or whole files.
    pub num_records: u64,
    /// Documents written.
    pub num_documents: u64,
    /// Tokens written, end-of-document tokens included.
    pub num_tokens: u64,
    /// Bytes of the text of the documents written.
    pub num_text_bytes: u64,
    /// Documents written in which bytes that are not UTF-8 became U+FFFD.
    pub num_replaced_utf8: u64,
    /// Records left out because they are not UTF-8.
    pub num_bad_utf8: u64,
    /// Records left out because they are broken or lack a field.
    pub num_bad_records: u64,
    /// Records left out because their text is empty.
    pub num_empty: u64,
    /// Records left out by their score.
    pub num_filtered: u64,
    /// Records left out because a document of the same text came before.
    pub num_duplicates: u64,
}

impl Counts {
    /// Records left out, for whatever reason.
    pub fn num_skipped(&self) -> u64 {
        self.num_bad_utf8
            + self.num_bad_records
            + self.num_empty
            + self.num_filtered
            + self.num_duplicates
    }

    /// Adds the counts of another part of the inputs.
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            num_records, num_documents, num_tokens, num_text_bytes, num_replaced_utf8, ..
        } = other;
        self.num_records += num_records;
        self.num_documents += num_documents;
        self.num_tokens += num_tokens;
        self.num_text_bytes += num_text_bytes;
        self.num_replaced_utf8 += num_replaced_utf8;
        self.num_bad_utf8 += other.num_bad_utf8;
        self.num_bad_records += other.num_bad_records;
        self.num_empty += other.num_empty;
        self.num_filtered += other.num_filtered;
        self.num_duplicates += other.num_duplicates;
    }
}

/// A record that was left out because it is broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BadRecordNote {
    /// The input.
    pub path: PathBuf,
    /// Line, row or record, from 1.
    pub number: u64,
    /// What is wrong with it.
    pub cause: String,
}

/// A place between two records of the inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Position {
    /// Number of the input.
    pub(crate) input: usize,
    /// Number of the next record in it, from 0.
    pub(crate) record: u64,
    /// Its first byte in the decompressed input; 0 for Parquet.
    pub(crate) byte: u64,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRecord {
    /// Token file, in the manifest's folder.
    pub tokens: String,
    /// Document index, in the manifest's folder.
    pub documents: String,
    /// Tokens in the shard.
    pub num_tokens: u64,
    /// Documents in the shard.
    pub num_documents: u64,
    /// SHA-256 of the token file, as `sha256sum` prints it.
    pub tokens_sha256: String,
    /// SHA-256 of the document index.
    pub documents_sha256: String,
    /// What became of the records between the shard before and the end of this one.
    pub counts: Counts,
    /// Broken records among them, the first few.
    pub bad_records: Vec<BadRecordNote>,
    /// Where the next shard begins in the inputs.
    pub(crate) next: Position,
}

/// The tokenizer that made the shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerRecord {
    /// [`crate::Tokenizer::describe`].
    pub description: String,
    /// [`crate::Tokenizer::fingerprint`]: equal for tokenizers that give the same ids.
    pub fingerprint: String,
    /// [`crate::Tokenizer::vocabulary_fingerprint`]: equal where ids mean the same text.
    pub vocabulary_fingerprint: String,
    /// Every id is below this.
    pub vocab_size: u32,
    /// The token after each document, if there is one.
    pub end_of_document: Option<u32>,
}

/// What a job was asked to do: what a later call must agree with to go on with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Job {
    pub(crate) tokenizer: TokenizerRecord,
    /// The options that change what is written.
    pub(crate) options: String,
    pub(crate) inputs: Vec<InputFile>,
}

/// What a folder of shards holds and how it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this file, 1.
    pub version: u32,
    /// What made the ids.
    pub tokenizer: TokenizerRecord,
    /// The options that shaped the output, in words.
    pub options: String,
    /// What was read, in order.
    pub inputs: Vec<InputFile>,
    /// The shards, in order.
    pub shards: Vec<ShardRecord>,
    /// Sums over all records.
    pub counts: Counts,
    /// Broken records, the first few.
    pub bad_records: Vec<BadRecordNote>,
}

impl Manifest {
    /// The manifest of a folder.
    ///
    /// # Errors
    /// [`Error::Io`] if there is none, [`SourceError::Damaged`] if it cannot be understood.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST_NAME);
        let manifest: Self = read_json(&path, "open the manifest")?;
        let names = manifest.shards.iter().flat_map(|shard| [&shard.tokens, &shard.documents]);
        if let Some(name) = names.into_iter().find(|name| !stays_below(name)) {
            let cause = format!("file {name:?} is not in the manifest's folder");
            return Err(SourceError::Damaged { path, cause }.into());
        }
        if manifest.version == 1 && !manifest.shards.is_empty() {
            return Ok(manifest);
        }
        let cause = format!(
            "it has version {} and {} shards, expected version 1 and at least 1",
            manifest.version,
            manifest.shards.len()
        );
        Err(SourceError::Damaged { path, cause }.into())
    }

    /// Compares every file of the folder with its SHA-256 in the manifest.
    ///
    /// # Errors
    /// [`SourceError::Damaged`] for the first that differs, [`Error::Io`] if one is missing.
    pub fn verify(&self, folder: &Path) -> Result<()> {
        for shard in &self.shards {
            let files = [
                (&shard.tokens, &shard.tokens_sha256),
                (&shard.documents, &shard.documents_sha256),
            ];
            for (name, expected) in files {
                let path = folder.join(name);
                let found = sha256_of(&path)?;
                if found != *expected {
                    let cause = format!("its SHA-256 is {found}, in the manifest {expected}");
                    return Err(SourceError::Damaged { path, cause }.into());
                }
            }
        }
        Ok(())
    }
}

/// Whether a path names something below the folder that it starts from.
fn stays_below(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    !name.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 18]);
    loop {
        let num_bytes = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if num_bytes == 0 {
            return Ok(hexadecimal(&hash.finalize()));
        }
        hash.update(&buffer[..num_bytes]);
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a JSON file that Grove wrote.
///
/// # Errors
/// [`Error::Io`] if it is missing, [`SourceError::Damaged`] if it cannot be understood.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, action: &'static str) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io(action, path))?;
    serde_json::from_slice(&bytes).map_err(|cause| {
        SourceError::Damaged { path: path.to_owned(), cause: cause.to_string() }.into()
    })
}

/// Publishes a value as JSON.
///
/// # Errors
/// [`Error::DiskFull`] or [`Error::Io`].
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("these types have JSON forms");
    bytes.push(b'\n');
    let mut file = Publication::create(path, 0)?;
    file.write(&bytes)?;
    file.publish(&[])
}
