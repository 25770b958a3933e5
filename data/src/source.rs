//! Token data of any kind behind one type: Grove's files and folders, and the formats people
//! have.

mod detect;
mod flat;
mod megatron;
mod npy;
mod shards;
mod stats;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use detect::{Format, SourceOptions};
pub use flat::FlatFile;
pub use shards::Shards;
pub use stats::SourceStats;

use crate::dataset::TokenizerRecord;
use crate::error::{Error, Result, SourceError};
use crate::token_file::TokenFile;

/// One long sequence of token ids on disk, and what is known of its documents. Cloning shares it.
#[derive(Clone, Debug)]
pub enum Source {
    /// A Grove token file.
    Tokens(Arc<TokenFile>),
    /// A file of bare ids: nanoGPT, llm.c, Megatron, NumPy.
    Flat(Arc<FlatFile>),
    /// A folder made by [`crate::tokenize_corpus`].
    Shards(Arc<Shards>),
}

impl From<Arc<TokenFile>> for Source {
    fn from(file: Arc<TokenFile>) -> Self {
        Self::Tokens(file)
    }
}

impl From<TokenFile> for Source {
    fn from(file: TokenFile) -> Self {
        Self::Tokens(Arc::new(file))
    }
}

/// Where a token is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file of tokens.
    pub file: PathBuf,
    /// Offset in bytes of the token in it.
    pub byte: u64,
}

/// The record that a document was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The text, JSON or Parquet file.
    pub input: PathBuf,
    /// Line, row or record in it, from 0.
    pub record: u64,
}

impl Source {
    /// Opens token data, telling its format by name and first bytes; see [`Format`].
    ///
    /// # Errors
    /// [`Error::Io`] if it is missing, [`SourceError::Format`] if it is of no known format, those
    /// of [`TokenFile::open`], and [`SourceError::Damaged`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &SourceOptions::default())
    }

    /// Tokens in all files.
    pub fn num_tokens(&self) -> u64 {
        match self {
            Self::Tokens(file) => file.num_tokens(),
            Self::Flat(file) => file.num_tokens(),
            Self::Shards(shards) => shards.num_tokens(),
        }
    }

    /// Every id is below this. For formats that do not say, what was given on opening, else what
    /// their integers can hold.
    pub fn vocab_size(&self) -> u32 {
        match self {
            Self::Tokens(file) => file.vocab_size(),
            Self::Flat(file) => file.vocab_size(),
            Self::Shards(shards) => shards.tokenizer().vocab_size,
        }
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        match self {
            Self::Tokens(file) => file.path(),
            Self::Flat(file) => file.path(),
            Self::Shards(shards) => shards.folder(),
        }
    }

    /// What made the ids, where that is recorded.
    pub fn tokenizer(&self) -> Option<&TokenizerRecord> {
        match self {
            Self::Tokens(_) | Self::Flat(_) => None,
            Self::Shards(shards) => Some(shards.tokenizer()),
        }
    }

    /// A 64-bit name of the content: from the headers of Grove's files, and for others from the
    /// size and three samples of 64 KiB.
    pub fn fingerprint(&self) -> u64 {
        match self {
            Self::Tokens(file) => file.fingerprint(),
            Self::Flat(file) => file.fingerprint(),
            Self::Shards(shards) => shards.fingerprint(),
        }
    }

    /// Compares the fingerprint with the one that a run was begun with.
    ///
    /// # Errors
    /// [`SourceError::Changed`] if they differ.
    pub fn expect_fingerprint(&self, expected: u64) -> Result<()> {
        let found = self.fingerprint();
        if found == expected {
            return Ok(());
        }
        Err(SourceError::Changed { path: self.path().to_owned(), expected, found }.into())
    }

    /// Fills `out` with the tokens from `start` on.
    ///
    /// # Errors
    /// [`Error::OutsideFile`] if there are not that many; [`Error::StoredTokenId`] with file and
    /// byte if an id is outside the vocabulary.
    pub fn read(&self, start: u64, out: &mut [u32]) -> Result<()> {
        match self {
            Self::Tokens(file) => file.read(start, out),
            Self::Flat(file) => file.read(start, out),
            Self::Shards(shards) => shards.read(start, out),
        }
    }

    /// Reads everything and compares it with checksums, where there are any; for other formats
    /// checks that every id is in the vocabulary.
    ///
    /// # Errors
    /// [`Error::PayloadChecksum`], [`SourceError::Damaged`] or [`Error::StoredTokenId`].
    pub fn verify(&self) -> Result<()> {
        match self {
            Self::Tokens(file) => file.verify(),
            Self::Flat(file) => file.verify(),
            Self::Shards(shards) => shards.verify(),
        }
    }

    /// Number of documents; `None` if it is not known where they begin.
    pub fn num_documents(&self) -> Option<u64> {
        match self {
            Self::Tokens(_) => None,
            Self::Flat(file) => file.documents().map(|documents| documents.len()),
            Self::Shards(shards) => Some(shards.num_documents()),
        }
    }

    /// The tokens of a document, its end-of-document token included.
    ///
    /// # Errors
    /// [`SourceError::NoDocuments`], [`SourceError::NoSuchDocument`].
    pub fn document(&self, document: u64) -> Result<Range<u64>> {
        let num_documents = self.need_documents("looking up a document")?;
        if document >= num_documents {
            let path = self.path().to_owned();
            return Err(SourceError::NoSuchDocument { path, document, num_documents }.into());
        }
        Ok(match self {
            Self::Tokens(_) => unreachable!("it has no documents"),
            Self::Flat(file) => {
                let documents = file.documents().expect("it was just counted");
                documents.start(document)..documents.start(document + 1)
            }
            Self::Shards(shards) => shards.document(document),
        })
    }

    /// The document that a token belongs to; `None` where documents are not known.
    ///
    /// # Panics
    /// If there is no such token.
    pub fn document_at(&self, token: u64) -> Option<u64> {
        assert!(token < self.num_tokens(), "token {token} is behind the end");
        match self {
            Self::Tokens(_) => None,
            Self::Flat(file) => file.documents().map(|documents| documents.containing(token)),
            Self::Shards(shards) => Some(shards.document_at(token)),
        }
    }

    /// The number of documents, where `purpose` needs them.
    ///
    /// # Errors
    /// [`SourceError::NoDocuments`].
    pub(crate) fn need_documents(&self, purpose: &'static str) -> Result<u64> {
        self.num_documents().ok_or_else(|| {
            Error::from(SourceError::NoDocuments { path: self.path().to_owned(), purpose })
        })
    }

    /// Where a token is stored.
    ///
    /// # Panics
    /// If there is no such token.
    pub fn place(&self, token: u64) -> Place {
        assert!(token < self.num_tokens(), "token {token} is behind the end");
        match self {
            Self::Tokens(file) => Place { file: file.path().to_owned(), byte: file.byte_of(token) },
            Self::Flat(file) => Place { file: file.path().to_owned(), byte: file.byte_of(token) },
            Self::Shards(shards) => shards.place(token),
        }
    }

    /// The record that a document was made from, where that is recorded.
    ///
    /// # Errors
    /// [`SourceError::NoSuchDocument`].
    pub fn origin(&self, document: u64) -> Result<Option<Origin>> {
        let Self::Shards(shards) = self else { return Ok(None) };
        self.document(document)?;
        Ok(Some(shards.origin(document)))
    }

    /// The document that was made from record `record` of an input; `None` if none was, or it is
    /// not recorded. Reads the index of documents.
    pub fn find_document(&self, input: &Path, record: u64) -> Option<u64> {
        let Self::Shards(shards) = self else { return None };
        shards.find_document(input, record)
    }
}
