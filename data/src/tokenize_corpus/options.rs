//! What a caller can choose about tokenizing.

use std::path::PathBuf;

use crate::dataset::TokenizerRecord;
use crate::error::{Error, InputError, Result};
use crate::input::InputFile;
use crate::tokenize::Tokenizer;

/// What a document is in plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextDocuments {
    /// Each file is one document.
    Files,
    /// Each line is one document; the line feed, and a carriage return before it, are no part.
    Lines,
    /// Documents stand between occurrences of this text, which is no part of them.
    Separated {
        /// Such as `<|endoftext|>`.
        separator: String,
    },
}

/// What to do with text that is not UTF-8. The tokenizer of bytes takes plain text as it is; JSON
/// must be UTF-8 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadUtf8 {
    /// Bad bytes become U+FFFD, and the document is counted.
    Replace,
    /// The document is left out, and counted.
    Skip,
    /// The job ends with the place.
    Fail,
}

/// What to do with a record that is broken JSON, or lacks its text or score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRecord {
    /// It is left out and counted; the manifest names the first few.
    Skip,
    /// The job ends with the place.
    Fail,
}

/// Keeps the records whose score lies in a range.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreFilter {
    /// Column of Parquet, or path in JSON.
    pub field: String,
    /// The least score kept, if there is one.
    pub min: Option<f64>,
    /// The largest score kept, if there is one.
    pub max: Option<f64>,
}

impl ScoreFilter {
    /// Whether a score is in the range; one that is not a number is not.
    pub(crate) fn keeps(&self, score: f64) -> bool {
        !score.is_nan()
            && self.min.is_none_or(|min| score >= min)
            && self.max.is_none_or(|max| score <= max)
    }
}

/// How documents are found in the inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentOptions {
    /// What a document is in plain text.
    pub text_documents: TextDocuments,
    /// Where the text is in JSON (a path: `text`, `meta.body`, `pages.0.text`) and Parquet (a
    /// column, inner ones with dots).
    pub text_field: String,
    /// What to do with text that is not UTF-8.
    pub on_bad_utf8: BadUtf8,
    /// What to do with broken records.
    pub on_bad_record: BadRecord,
    /// Which records are kept; `None` keeps all.
    pub score: Option<ScoreFilter>,
}

/// The token that is written after each document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndOfDocument {
    /// None.
    Absent,
    /// The token of this name, such as `<|endoftext|>`.
    Token(String),
    /// This id, which may be beyond the tokenizer's vocabulary and then extends it.
    Id(u32),
}

/// A job for [`crate::tokenize_corpus`].
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizeOptions {
    /// Files, folders and globs, as [`crate::list_inputs`] takes them.
    pub inputs: Vec<String>,
    /// The folder to write, which may hold the same job half done.
    pub out: PathBuf,
    /// How documents are found.
    pub documents: DocumentOptions,
    /// What is written after each document.
    pub end_of_document: EndOfDocument,
    /// Whether a document is left out when one with the same text came before it, told by a
    /// 128-bit hash.
    pub deduplicate: bool,
    /// A shard ends with the document that brings it to this many tokens.
    pub shard_tokens: u64,
    /// Threads that encode; 0 for one a core. The output does not depend on it.
    pub num_threads: usize,
}

impl TokenizeOptions {
    /// The options that change what is written, in words. They are compared when a job goes on.
    pub(crate) fn in_words(&self) -> String {
        let Self { documents, deduplicate, shard_tokens, .. } = self;
        format!("{documents:?}, deduplicate {deduplicate}, shard_tokens {shard_tokens}")
    }

    /// Refuses options that cannot be used with these inputs.
    pub(crate) fn check(&self, inputs: &[InputFile]) -> Result<()> {
        if self.shard_tokens == 0 {
            return Err(Error::Zero { key: "shard_tokens" });
        }
        self.documents.check(inputs)
    }

    /// What the manifest says of the tokenizer.
    pub(crate) fn tokenizer_record(&self, tokenizer: &Tokenizer) -> Result<TokenizerRecord> {
        let end_of_document = match &self.end_of_document {
            EndOfDocument::Absent => None,
            EndOfDocument::Id(id) => Some(*id),
            EndOfDocument::Token(token) => Some(tokenizer.token_id(token).ok_or_else(|| {
                let tokenizer = tokenizer.describe();
                InputError::UnknownEndOfDocument { token: token.clone(), tokenizer }
            })?),
        };
        if end_of_document == Some(u32::MAX) {
            return Err(InputError::Option {
                key: "end_of_document",
                found: u32::MAX.to_string(),
                expected: "less than 2^32 - 1",
            }
            .into());
        }
        let least = end_of_document.map_or(0, |id| id + 1);
        Ok(TokenizerRecord {
            description: tokenizer.describe(),
            fingerprint: tokenizer.fingerprint(),
            vocabulary_fingerprint: tokenizer.vocabulary_fingerprint(),
            vocab_size: tokenizer.vocab_size().max(least),
            end_of_document,
        })
    }
}
