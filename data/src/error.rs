//! What can go wrong between a text file and a batch: one enum for the whole room.
//!
//! Every message names the file or key, what was expected, what was found and the remedy. Causes
//! are part of the message (field `cause`), not of the error chain, so that a message printed
//! alone, as a failing rank does, is complete.

mod input;
mod mixture;
mod source;

use std::io;
use std::path::{Path, PathBuf};

pub use input::InputError;
pub use mixture::MixtureError;
pub use source::SourceError;

/// Result with this room's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in `grove-data`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Text that was to be tokenized could not be found, read or taken apart.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Token data could not be opened, or is not what it was.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Sources cannot be mixed, packed or looked up as asked.
    #[error(transparent)]
    Mixture(#[from] MixtureError),
    /// The caller asked for the end.
    #[error("interrupted before the end; nothing was written")]
    Interrupted,
    /// The operating system refused something.
    #[error("cannot {action} `{}`: {cause}", path.display())]
    Io {
        /// What was tried, as a verb ("open", "write").
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        cause: io::Error,
    },
    /// The disk filled up, or a quota was reached, while writing.
    #[error(
        "no space left on the disk of `{}` after {written_bytes} bytes were written; \
         free space or choose another output path ({cause})",
        path.display()
    )]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// Bytes that had been handed over before the failure.
        written_bytes: u64,
        /// The operating system's answer.
        cause: io::Error,
    },
    /// The path exists but is a folder, a pipe or a device.
    #[error("`{}` is not a regular file; expected a token file made by `grove tokenize`", path.display())]
    NotAFile {
        /// The path given.
        path: PathBuf,
    },
    /// The file has no bytes at all.
    #[error("`{}` is empty (0 bytes); expected a token file made by `grove tokenize`", path.display())]
    EmptyFile {
        /// The path given.
        path: PathBuf,
    },
    /// The file ends inside the header.
    #[error(
        "`{}` ends at byte {found_bytes}, inside the {expected_bytes}-byte header of a token file; \
         copy or tokenize it again",
        path.display()
    )]
    TruncatedHeader {
        /// The token file.
        path: PathBuf,
        /// Size of a header.
        expected_bytes: u64,
        /// Size of the file.
        found_bytes: u64,
    },
    /// A header field does not hold what it must.
    #[error(
        "`{}` byte {byte}: {field} is {found}, expected {expected}; {remedy}",
        path.display()
    )]
    Header {
        /// The token file.
        path: PathBuf,
        /// Offset of the field in the file.
        byte: u64,
        /// Name of the field.
        field: &'static str,
        /// What the field must hold.
        expected: String,
        /// What it holds.
        found: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// The file is shorter than its header says.
    #[error(
        "`{}` is truncated: it ends at byte {found_bytes}, but its header (byte 24) announces \
         {num_tokens} tokens, which end at byte {expected_bytes}; copy or tokenize it again",
        path.display()
    )]
    Truncated {
        /// The token file.
        path: PathBuf,
        /// Tokens announced by the header.
        num_tokens: u64,
        /// Size the file should have; `u128` because a damaged count may exceed `u64`.
        expected_bytes: u128,
        /// Size of the file.
        found_bytes: u64,
    },
    /// The file is longer than its header says.
    #[error(
        "`{}` is too long: it ends at byte {found_bytes}, but its header (byte 24) announces \
         {num_tokens} tokens, which end at byte {expected_bytes}; something was appended to it, \
         so copy or tokenize it again",
        path.display()
    )]
    TooLong {
        /// The token file.
        path: PathBuf,
        /// Tokens announced by the header.
        num_tokens: u64,
        /// Size the file should have.
        expected_bytes: u128,
        /// Size of the file.
        found_bytes: u64,
    },
    /// The tokens are not those that were written.
    #[error(
        "`{}`: checksum of the token bytes is {found:016x}, but the header (byte 32) says \
         {expected:016x}; the file is damaged, so copy or tokenize it again",
        path.display()
    )]
    PayloadChecksum {
        /// The token file.
        path: PathBuf,
        /// Checksum in the header.
        expected: u64,
        /// Checksum of the bytes as they are.
        found: u64,
    },
    /// A stored token id is outside the vocabulary.
    #[error(
        "`{}` byte {byte}: token id {id} is outside the vocabulary of {vocab_size}; \
         the file is damaged, so check it with `grove verify` and tokenize it again",
        path.display()
    )]
    StoredTokenId {
        /// The token file.
        path: PathBuf,
        /// Offset of the token in the file.
        byte: u64,
        /// The id found there.
        id: u32,
        /// Vocabulary size in the header.
        vocab_size: u32,
    },
    /// A token id given to the writer is outside the vocabulary.
    #[error("`{}` token {position}: id {id} is outside the vocabulary of {vocab_size}", path.display())]
    WrittenTokenId {
        /// The token file being written.
        path: PathBuf,
        /// Number of tokens before it.
        position: u64,
        /// The id given.
        id: u32,
        /// Vocabulary size given to the writer.
        vocab_size: u32,
    },
    /// Tokens were asked for that the file does not have.
    #[error(
        "tokens {start}..{end} were asked of `{}`, which has {num_tokens} tokens",
        path.display()
    )]
    OutsideFile {
        /// The token file.
        path: PathBuf,
        /// First token asked for.
        start: u64,
        /// One past the last token asked for.
        end: u64,
        /// Tokens in the file.
        num_tokens: u64,
    },
    /// A token file was to be published without a token.
    #[error("`{}` would hold 0 tokens; is the input empty?", path.display())]
    NoTokens {
        /// The token file being written.
        path: PathBuf,
    },
    /// A number that must be positive is zero.
    #[error("{key} is 0, expected at least 1")]
    Zero {
        /// The key, as in the configuration.
        key: &'static str,
    },
    /// The validation fraction is not a fraction.
    #[error("validation_fraction is {found}, expected 0 <= validation_fraction < 1")]
    ValidationFraction {
        /// The value given.
        found: f64,
    },
    /// Training and validation files were made with different tokenizers.
    #[error(
        "`{}` has vocab_size {train_vocab_size}, but `{}` has {validation_vocab_size}; \
         make both with the same tokenizer",
        train.display(),
        validation.display()
    )]
    VocabMismatch {
        /// The training file.
        train: PathBuf,
        /// Its vocabulary size.
        train_vocab_size: u32,
        /// The validation file.
        validation: PathBuf,
        /// Its vocabulary size.
        validation_vocab_size: u32,
    },
    /// The range has too few tokens for one training window.
    #[error(
        "{num_tokens} tokens are too few for one window: \
         sequence_length + 1 = {sequence_length} + 1 > {num_tokens}; \
         use a shorter sequence_length or more text"
    )]
    TooFewTokens {
        /// Tokens in the range.
        num_tokens: u64,
        /// Tokens predicted per window.
        sequence_length: u64,
    },
    /// The validation range has too few tokens for one batch.
    #[error(
        "{num_tokens} validation tokens are too few for one batch: \
         micro_batch_size * sequence_length + 1 = {micro_batch_size} * {sequence_length} + 1 \
         > {num_tokens}; raise validation_fraction or lower micro_batch_size or sequence_length"
    )]
    TooFewValidationTokens {
        /// Tokens in the range.
        num_tokens: u64,
        /// Windows per batch.
        micro_batch_size: u64,
        /// Tokens predicted per window.
        sequence_length: u64,
    },
    /// A micro-batch or validation batch was asked for that does not exist.
    #[error("{what} {index} was asked for, but there are {count} (0..{count})")]
    NoSuchBatch {
        /// Which kind of batch.
        what: &'static str,
        /// The index asked for.
        index: u64,
        /// How many there are.
        count: u64,
    },
    /// The sample number does not fit 64 bits.
    #[error(
        "step {step} overflows the sample counter: \
         (step * {micro_batches_per_step} + index + 1) * {micro_batch_size} >= 2^64"
    )]
    StepTooLarge {
        /// The step asked for.
        step: u64,
        /// Micro-batches per step.
        micro_batches_per_step: u64,
        /// Samples per micro-batch.
        micro_batch_size: u64,
    },
    /// A prefetcher was to be made for a rank that has no micro-batches.
    #[error("no micro-batch to prefetch: this rank's list of micro-batch indices is empty")]
    NothingToPrefetch,
    /// The prefetch thread is gone because an earlier batch failed.
    #[error(
        "the prefetch thread has ended, after an earlier data error or a panic; restart the run"
    )]
    PrefetchEnded,
    /// The tokenizer given does not exist.
    #[error(
        "no tokenizer at `{spec}`: looked for {looked_for}; \
         use \"bytes\", a tokenizer.json, or a folder that holds tokenizer.json or \
         vocab.json and merges.txt"
    )]
    TokenizerNotFound {
        /// What was given.
        spec: String,
        /// The paths that were tried.
        looked_for: String,
    },
    /// The tokenizer's files cannot be used.
    #[error("cannot load the tokenizer `{}`: {cause}", path.display())]
    TokenizerLoad {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The tokenizer failed on a text.
    #[error("the tokenizer {tokenizer} failed: {cause}")]
    Tokenizer {
        /// [`crate::Tokenizer::describe`].
        tokenizer: String,
        /// The tokenizer's own message.
        cause: String,
    },
    /// An id given to `decode` is not in the vocabulary.
    #[error("token {position} to decode: id {id} is not in the vocabulary of {tokenizer}")]
    UnknownTokenId {
        /// Position in the slice given.
        position: usize,
        /// The id.
        id: u32,
        /// [`crate::Tokenizer::describe`].
        tokenizer: String,
    },
    /// Text is not UTF-8, and the tokenizer needs UTF-8.
    #[error(
        "{origin} is not UTF-8 at byte {byte}; convert it to UTF-8 or use tokenizer = \"bytes\""
    )]
    NotUtf8 {
        /// The file in back-quotes, or "text".
        origin: String,
        /// Offset of the first bad byte.
        byte: u64,
    },
}

impl Error {
    /// An adapter for `map_err`: what was tried, on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { action, path: path.to_owned(), cause }
    }

    /// An adapter for `map_err` while writing: a full disk or quota gets its own remedy.
    pub(crate) fn write(path: &Path, written_bytes: u64) -> impl FnOnce(io::Error) -> Self {
        move |cause| match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path: path.to_owned(), written_bytes, cause }
            }
            _ => Self::Io { action: "write", path: path.to_owned(), cause },
        }
    }
}
