//! What can go wrong while text is found, read and taken apart.

use std::path::PathBuf;

/// Errors of inputs: files, compressed data, records, fields.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// A folder or pattern stands for no file.
    #[error(
        "the input `{input}` names no file; give files, globs, or folders that hold .txt, .md, \
         .jsonl or .parquet files (also with .gz or .zst)"
    )]
    NoInput {
        /// What was given; empty if nothing was.
        input: String,
    },
    /// A pattern cannot be expanded.
    #[error("the input pattern `{pattern}` cannot be expanded: {cause}")]
    Glob {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A file is not what its name says, or is cut off.
    #[error("`{}` holds broken {what}: {cause}; fetch it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// The decoder's message.
        cause: String,
    },
    /// A Parquet file lacks a column, or it cannot be used.
    #[error("`{}` cannot give column `{column}`: {cause}", path.display())]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The column asked for.
        column: String,
        /// What is there instead.
        cause: String,
    },
    /// A record is broken, and the policy is to fail.
    #[error(
        "`{}` {unit} {number}: {cause}; mend it, or set on_bad_record to skip",
        path.display()
    )]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// "line", "row" or "record".
        unit: &'static str,
        /// Its number, from 1.
        number: u64,
        /// What is wrong: broken JSON, a missing field, a field of another type.
        cause: String,
    },
    /// A document is not UTF-8, and the policy is to fail.
    #[error(
        "`{}` {unit} {number} is not UTF-8 at byte {byte} of the file; mend it, or set \
         on_bad_utf8 to replace or skip",
        path.display()
    )]
    BadUtf8 {
        /// The file.
        path: PathBuf,
        /// "line", "row" or "record".
        unit: &'static str,
        /// Its number, from 1.
        number: u64,
        /// Offset of the first bad byte in the decompressed file; in the cell for Parquet.
        byte: u64,
    },
    /// The end-of-document token does not exist.
    #[error("the end-of-document token `{token}` is not in the vocabulary of {tokenizer}")]
    UnknownEndOfDocument {
        /// What was given.
        token: String,
        /// [`crate::Tokenizer::describe`].
        tokenizer: String,
    },
    /// An option has a value that cannot be used.
    #[error("{key} is {found}, expected {expected}")]
    Option {
        /// The key.
        key: &'static str,
        /// What was given.
        found: String,
        /// What can be used.
        expected: &'static str,
    },
    /// Every document was left out.
    #[error(
        "nothing is left to write to `{}`: of {num_records} records {num_skipped} were skipped",
        path.display()
    )]
    NothingLeft {
        /// The output folder.
        path: PathBuf,
        /// Records read.
        num_records: u64,
        /// Records left out.
        num_skipped: u64,
    },
    /// The output folder holds another job's shards.
    #[error(
        "`{}` was begun with another {what} ({found}, now {expected}); choose another folder, or \
         remove this one to start anew",
        path.display()
    )]
    OtherJob {
        /// The output folder.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the folder records.
        found: String,
        /// What was given now.
        expected: String,
    },
    /// An input was changed, or is gone, since the job was begun.
    #[error(
        "the input `{}` is {found}, but the job in `{}` was begun with {expected}; bring it back, \
         or remove the folder to start anew",
        path.display(),
        out.display()
    )]
    InputChanged {
        /// The input.
        path: PathBuf,
        /// The output folder.
        out: PathBuf,
        /// Size and fingerprint recorded.
        expected: String,
        /// Size and fingerprint now, or "missing".
        found: String,
    },
    /// The caller asked for the end; what is finished stays.
    #[error(
        "interrupted; `{}` holds {num_shards} finished shards, and the same call goes on after \
         them",
        path.display()
    )]
    Paused {
        /// The output folder.
        path: PathBuf,
        /// Shards that need not be made again.
        num_shards: u64,
    },
}
