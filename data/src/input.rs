//! Text on disk: which files, what is in them, and their documents one after the other.
//!
//! Plain text, JSON lines and Parquet, each also compressed by gzip or zstd. [`listing`] finds
//! the files, [`stream`] decompresses them, [`records`] cuts text into whole records, and
//! [`json`] and [`columns`] take a document's text out of its record.

pub(crate) mod columns;
pub(crate) mod json;
pub(crate) mod listing;
pub(crate) mod records;
pub(crate) mod stream;
#[cfg(test)]
mod tests;

pub use listing::{InputFile, InputKind, list_inputs};
