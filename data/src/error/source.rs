//! What can go wrong while token data is opened.

use std::path::PathBuf;

/// Errors of token data in Grove's and in foreign formats.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A file does not hold what it must.
    #[error("`{}` is damaged: {cause}; copy it again or make it anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The format cannot be told, or is not one that can be read.
    #[error(
        "`{}` cannot be read as tokens: {cause}; expected a Grove token file or folder, nanoGPT \
         .bin, llm.c .bin, Megatron .bin and .idx, or a one-dimensional .npy",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found.
        cause: String,
    },
    /// A shard was made with another tokenizer than its manifest says, or a source than another.
    #[error(
        "`{}` was made with {found}, but `{}` with {expected}; ids would mean different text, so \
         tokenize both with the same tokenizer",
        path.display(),
        other.display()
    )]
    MixedTokenizers {
        /// The source refused.
        path: PathBuf,
        /// Its tokenizer.
        found: String,
        /// The source before it.
        other: PathBuf,
        /// Its tokenizer.
        expected: String,
    },
    /// The content is not what the run was begun with.
    #[error(
        "`{}` was changed: its fingerprint is {found:016x}, but the run was begun with \
         {expected:016x}; bring the old file back, or start another run",
        path.display()
    )]
    Changed {
        /// The source.
        path: PathBuf,
        /// Fingerprint recorded.
        expected: u64,
        /// Fingerprint now.
        found: u64,
    },
    /// The document asked for does not exist.
    #[error("document {document} was asked of `{}`, which has {num_documents}", path.display())]
    NoSuchDocument {
        /// The source.
        path: PathBuf,
        /// The document asked for.
        document: u64,
        /// Documents in the source.
        num_documents: u64,
    },
    /// The source does not know where its documents begin.
    #[error(
        "`{}` has no document index, which {purpose} needs; use a folder made by `grove \
         tokenize`, or Megatron .bin and .idx",
        path.display()
    )]
    NoDocuments {
        /// The source.
        path: PathBuf,
        /// What it was wanted for.
        purpose: &'static str,
    },
}
