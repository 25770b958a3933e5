//! The writing side: documents in order, into shards.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::TokenizeOptions;
use super::worker::{Encoded, Fate, Outcome};
use crate::dataset::{
    BadRecordNote, Counts, DocumentFile, DocumentRecord, DocumentWriter, Position, ShardRecord,
    TokenizerRecord, sha256_of, write_json,
};
use crate::error::{InputError, Result};
use crate::input::InputFile;
use crate::token_file::TokenWriter;

/// Broken records that a shard, and the manifest, name.
const MAX_NOTES: usize = 20;

/// Names of a shard's token file, document index and record.
pub(super) fn shard_names(index: usize) -> [String; 3] {
    ["tokens", "documents", "json"].map(|ending| format!("shard-{index:05}.{ending}"))
}

/// A shard being written.
struct OpenShard {
    tokens: TokenWriter,
    documents: DocumentWriter,
}

/// Writes documents into shards, and keeps count.
pub(super) struct ShardWriter {
    folder: PathBuf,
    vocab_size: u32,
    end_of_document: Option<u32>,
    shard_tokens: u64,
    finished: Vec<ShardRecord>,
    /// `None` between shards: one begins with its first document.
    open: Option<OpenShard>,
    /// What became of the records since the last shard, and broken ones among them.
    counts: Counts,
    notes: Vec<BadRecordNote>,
    /// Hashes of the documents written; `None` where duplicates are kept.
    seen: Option<BTreeSet<u128>>,
    /// Ids written of the document whose last part is still to come, its bytes, whether bytes
    /// were replaced in it.
    begun: Option<(u64, u64, bool)>,
    /// Whether the rest of the present document is left out as a duplicate.
    is_dropping: bool,
}

impl ShardWriter {
    /// Goes on behind finished shards.
    ///
    /// # Errors
    /// Those of opening their document indices, which hold the hashes to compare with.
    pub(super) fn resume(
        options: &TokenizeOptions,
        tokenizer: &TokenizerRecord,
        finished: Vec<ShardRecord>,
    ) -> Result<Self> {
        let folder = options.out.clone();
        let mut seen = options.deduplicate.then(BTreeSet::new);
        if let Some(seen) = &mut seen {
            for shard in &finished {
                let path = folder.join(&shard.documents);
                let index = DocumentFile::open(&path, shard.num_tokens, shard.num_documents)?;
                seen.extend((0..index.num_documents()).map(|document| index.get(document).hash));
            }
        }
        Ok(Self {
            folder,
            vocab_size: tokenizer.vocab_size,
            end_of_document: tokenizer.end_of_document,
            shard_tokens: options.shard_tokens,
            finished,
            open: None,
            counts: Counts::default(),
            notes: Vec::new(),
            seen,
            begun: None,
            is_dropping: false,
        })
    }

    pub(super) fn num_shards(&self) -> u64 {
        self.finished.len() as u64
    }

    /// Sums over everything so far.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = self.counts.clone();
        self.finished.iter().for_each(|shard| counts.add(&shard.counts));
        counts
    }

    /// Writes the documents of a task.
    ///
    /// # Errors
    /// [`crate::Error::DiskFull`] or [`crate::Error::Io`].
    pub(super) fn take(&mut self, encoded: &Encoded, inputs: &[InputFile]) -> Result<()> {
        let mut ids = encoded.ids.as_slice();
        for fate in &encoded.fates {
            match &fate.outcome {
                &Outcome::Part { num_ids, num_bytes, hash, is_replaced } => {
                    let (part, rest) = ids.split_at(num_ids);
                    ids = rest;
                    self.write_part(part, (num_bytes, is_replaced), hash)?;
                }
                &Outcome::Document { num_ids, num_bytes, hash, is_replaced } => {
                    let (part, rest) = ids.split_at(num_ids);
                    ids = rest;
                    self.write_part(part, (num_bytes, is_replaced), Some(hash))?;
                    self.end_document(fate, encoded.input, hash)?;
                }
                skipped => self.skip(skipped, fate.record, &inputs[encoded.input].path),
            }
        }
        Ok(())
    }

    fn skip(&mut self, outcome: &Outcome, record: u64, path: &Path) {
        self.counts.num_records += 1;
        match outcome {
            Outcome::Part { .. } | Outcome::Document { .. } => {
                unreachable!("the caller writes what has ids")
            }
            Outcome::BadUtf8 => self.counts.num_bad_utf8 += 1,
            Outcome::Filtered => self.counts.num_filtered += 1,
            Outcome::BadRecord(cause) => {
                self.counts.num_bad_records += 1;
                if self.notes.len() < MAX_NOTES {
                    let (path, cause) = (path.to_owned(), cause.clone());
                    self.notes.push(BadRecordNote { path, number: record + 1, cause });
                }
            }
        }
    }

    fn write_part(
        &mut self,
        ids: &[u32],
        (num_bytes, is_replaced): (u64, bool),
        hash: Option<u128>,
    ) -> Result<()> {
        let is_first = self.begun.is_none();
        let (num_ids, old_bytes, was_replaced) = self.begun.unwrap_or_default();
        let num_ids = num_ids + ids.len() as u64;
        self.begun = Some((num_ids, old_bytes + num_bytes, was_replaced || is_replaced));
        if is_first {
            let is_seen = |seen: &BTreeSet<u128>| hash.is_some_and(|hash| seen.contains(&hash));
            self.is_dropping = num_ids > 0 && self.seen.as_ref().is_some_and(is_seen);
        }
        if self.is_dropping || ids.is_empty() {
            return Ok(());
        }
        if self.open.is_none() {
            let [tokens, documents, _] =
                shard_names(self.finished.len()).map(|name| self.folder.join(name));
            self.open = Some(OpenShard {
                tokens: TokenWriter::create(tokens, self.vocab_size)?,
                documents: DocumentWriter::create(&documents)?,
            });
        }
        self.open.as_mut().expect("it was just opened").tokens.write(ids)
    }

    fn end_document(&mut self, fate: &Fate, input: usize, hash: u128) -> Result<()> {
        let (num_ids, num_bytes, is_replaced) = self.begun.take().unwrap_or_default();
        self.counts.num_records += 1;
        if num_ids == 0 {
            self.counts.num_empty += 1;
            return Ok(());
        }
        if std::mem::take(&mut self.is_dropping) {
            self.counts.num_duplicates += 1;
            return Ok(());
        }
        if let Some(seen) = &mut self.seen {
            seen.insert(hash);
        }
        let shard = self.open.as_mut().expect("writing its ids opened a shard");
        if let Some(id) = self.end_of_document {
            shard.tokens.write(&[id])?;
        }
        let end_token = shard.tokens.num_tokens();
        let record = fate.record;
        shard.documents.write(DocumentRecord { end_token, record, input: input as u32, hash })?;
        self.counts.num_documents += 1;
        self.counts.num_tokens += num_ids + u64::from(self.end_of_document.is_some());
        self.counts.num_text_bytes += num_bytes;
        self.counts.num_replaced_utf8 += u64::from(is_replaced);
        if end_token >= self.shard_tokens { self.close(fate.next) } else { Ok(()) }
    }

    /// Publishes the open shard and, last, its record, which makes it count as finished.
    fn close(&mut self, next: Position) -> Result<()> {
        let Some(OpenShard { tokens, documents }) = self.open.take() else { return Ok(()) };
        let names = shard_names(self.finished.len());
        let [tokens_path, documents_path, record_path] = names.clone().map(|n| self.folder.join(n));
        tokens.finish()?;
        documents.finish()?;
        let [tokens, documents, _] = names;
        let counts = std::mem::take(&mut self.counts);
        let shard = ShardRecord {
            tokens,
            documents,
            num_tokens: counts.num_tokens,
            num_documents: counts.num_documents,
            tokens_sha256: sha256_of(&tokens_path)?,
            documents_sha256: sha256_of(&documents_path)?,
            counts,
            bad_records: std::mem::take(&mut self.notes),
            next,
        };
        write_json(&record_path, &shard)?;
        self.finished.push(shard);
        Ok(())
    }

    /// Closes the last shard; returns all shards, the sums, and the first broken records.
    ///
    /// # Errors
    /// [`InputError::NothingLeft`] if no document was written; those of writing.
    pub(super) fn finish(
        mut self,
        num_inputs: usize,
    ) -> Result<(Vec<ShardRecord>, Counts, Vec<BadRecordNote>)> {
        // What was skipped behind the last document counts to the last shard, if one is open.
        self.close(Position { input: num_inputs, record: 0, byte: 0 })?;
        let counts = self.counts();
        let (num_records, num_skipped) = (counts.num_records, counts.num_skipped());
        if self.finished.is_empty() {
            let path = self.folder;
            return Err(InputError::NothingLeft { path, num_records, num_skipped }.into());
        }
        let notes = self.finished.iter().flat_map(|shard| &shard.bad_records).cloned();
        let notes = notes.chain(self.notes).take(MAX_NOTES).collect();
        Ok((self.finished, counts, notes))
    }
}
