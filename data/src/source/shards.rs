//! A folder of shards as one sequence.

use std::ops::Range;
use std::path::{Path, PathBuf};

use twox_hash::XxHash3_64;

use super::{Origin, Place};
use crate::dataset::{DocumentFile, Manifest, TokenizerRecord};
use crate::error::{Error, Result, SourceError};
use crate::token_file::TokenFile;

/// The shards of a manifest, opened and mapped, one behind the other.
#[derive(Debug)]
pub struct Shards {
    folder: PathBuf,
    manifest: Manifest,
    files: Vec<TokenFile>,
    documents: Vec<DocumentFile>,
    /// First token of each shard, and the number of tokens.
    token_starts: Vec<u64>,
    /// First document of each shard, and the number of documents.
    document_starts: Vec<u64>,
}

impl Shards {
    /// Opens a folder, reading headers and the manifest only.
    ///
    /// # Errors
    /// Those of [`Manifest::read`] and [`TokenFile::open`]; [`SourceError::Damaged`] if a shard is
    /// not what the manifest says, [`SourceError::MixedTokenizers`] if it has another vocabulary.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        let manifest = Manifest::read(&folder)?;
        let (mut files, mut documents) = (Vec::new(), Vec::new());
        let (mut token_starts, mut document_starts) = (vec![0], vec![0]);
        for shard in &manifest.shards {
            let path = folder.join(&shard.tokens);
            let file = TokenFile::open(&path)?;
            if file.num_tokens() != shard.num_tokens {
                let (found, expected) = (file.num_tokens(), shard.num_tokens);
                let cause = format!("it has {found} tokens, in the manifest {expected}");
                return Err(SourceError::Damaged { path, cause }.into());
            }
            if file.vocab_size() != manifest.tokenizer.vocab_size {
                return Err(SourceError::MixedTokenizers {
                    path,
                    found: format!("vocab_size {}", file.vocab_size()),
                    other: folder,
                    expected: format!("vocab_size {}", manifest.tokenizer.vocab_size),
                }
                .into());
            }
            let path = folder.join(&shard.documents);
            documents.push(DocumentFile::open(&path, shard.num_tokens, shard.num_documents)?);
            token_starts.push(token_starts[files.len()] + shard.num_tokens);
            document_starts.push(document_starts[files.len()] + shard.num_documents);
            files.push(file);
        }
        Ok(Self { folder, manifest, files, documents, token_starts, document_starts })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the folder says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn tokenizer(&self) -> &TokenizerRecord {
        &self.manifest.tokenizer
    }

    pub(super) fn num_tokens(&self) -> u64 {
        self.token_starts[self.files.len()]
    }

    pub(super) fn num_documents(&self) -> u64 {
        self.document_starts[self.files.len()]
    }

    pub(super) fn fingerprint(&self) -> u64 {
        let names: Vec<u8> =
            self.files.iter().flat_map(|file| file.fingerprint().to_le_bytes()).collect();
        XxHash3_64::oneshot(&names)
    }

    pub(super) fn read(&self, start: u64, out: &mut [u32]) -> Result<()> {
        let (num_tokens, end) = (self.num_tokens(), start.saturating_add(out.len() as u64));
        if end > num_tokens {
            return Err(Error::OutsideFile { path: self.folder.clone(), start, end, num_tokens });
        }
        let (mut start, mut out) = (start, out);
        while !out.is_empty() {
            let shard = part_of(&self.token_starts, start);
            let left = self.token_starts[shard + 1] - start;
            let (now, later) = out.split_at_mut(left.min(out.len() as u64) as usize);
            self.files[shard].read(start - self.token_starts[shard], now)?;
            start += now.len() as u64;
            out = later;
        }
        Ok(())
    }

    pub(super) fn verify(&self) -> Result<()> {
        self.files.iter().try_for_each(TokenFile::verify)?;
        self.documents.iter().try_for_each(DocumentFile::verify)
    }

    pub(super) fn document(&self, document: u64) -> Range<u64> {
        let (shard, index) = self.split(document);
        let file = &self.documents[shard];
        let start = index.checked_sub(1).map_or(0, |before| file.get(before).end_token);
        let first = self.token_starts[shard];
        first + start..first + file.get(index).end_token
    }

    pub(super) fn document_at(&self, token: u64) -> u64 {
        let shard = part_of(&self.token_starts, token);
        let (file, token) = (&self.documents[shard], token - self.token_starts[shard]);
        let (mut low, mut high) = (0, file.num_documents());
        // The first document that ends behind the token.
        while low < high {
            let middle = low + (high - low) / 2;
            if file.get(middle).end_token > token { high = middle } else { low = middle + 1 }
        }
        self.document_starts[shard] + low
    }

    pub(super) fn place(&self, token: u64) -> Place {
        let shard = part_of(&self.token_starts, token);
        let file = &self.files[shard];
        let byte = file.byte_of(token - self.token_starts[shard]);
        Place { file: file.path().to_owned(), byte }
    }

    pub(super) fn origin(&self, document: u64) -> Origin {
        let (shard, index) = self.split(document);
        let record = self.documents[shard].get(index);
        let input = self.manifest.inputs.get(record.input as usize);
        let input = input.map_or_else(PathBuf::new, |input| input.path.clone());
        Origin { input, record: record.record }
    }

    pub(super) fn find_document(&self, input: &Path, record: u64) -> Option<u64> {
        (0..self.num_documents()).find(|&document| {
            let (shard, index) = self.split(document);
            let found = self.documents[shard].get(index);
            let inputs = &self.manifest.inputs;
            found.record == record
                && inputs.get(found.input as usize).is_some_and(|found| found.path == input)
        })
    }

    /// Shard and number in it of a document.
    fn split(&self, document: u64) -> (usize, u64) {
        let shard = part_of(&self.document_starts, document);
        (shard, document - self.document_starts[shard])
    }
}

/// Which part holds `index`, where `starts` are the first indices of the parts and the end.
fn part_of(starts: &[u64], index: u64) -> usize {
    starts.partition_point(|&start| start <= index) - 1
}
