//! A tokenized corpus on disk: shards of tokens, an index of their documents, and a manifest.

mod documents;
mod manifest;
#[cfg(test)]
mod tests;

pub(crate) use documents::{DocumentFile, DocumentRecord, DocumentWriter};
pub use manifest::{BadRecordNote, Counts, Manifest, ShardRecord, TokenizerRecord};
pub(crate) use manifest::{
    Job, MANIFEST_NAME, Position, hexadecimal, read_json, sha256_of, write_json,
};
