//! The reading thread: inputs to tasks, in order.

use std::sync::atomic::AtomicU64;

use twox_hash::XxHash3_128;

use super::pipeline::Pipeline;
use super::{BadUtf8, TextDocuments};
use crate::dataset::Position;
use crate::error::Result;
use crate::input::columns::{ColumnsReader, Rows};
use crate::input::records::{Block, RecordReader};
use crate::input::stream::ByteStream;
use crate::input::{InputFile, InputKind};
use crate::tokenize::Chunking;

const LINE_FEED: &[u8] = b"\n";
/// Rows read from Parquet at once.
const ROWS_AT_ONCE: usize = 256;

/// What one thread encodes at a time.
pub(super) struct Task {
    /// Its place in the order, from 0.
    pub(super) number: u64,
    /// Number of the input.
    pub(super) input: usize,
    pub(super) work: Work,
}

pub(super) enum Work {
    /// A part of a file that is one document.
    Part {
        bytes: Vec<u8>,
        /// Offset of `bytes` in the decompressed file.
        start_byte: u64,
        is_last: bool,
        /// Hash of the whole document, known at its last part at the latest.
        hash: Option<u128>,
    },
    /// A file that is one document and is left out, since it is not UTF-8.
    NotUtf8,
    /// Lines or other separated records.
    Records(Block),
    Rows(Rows),
}

pub(super) struct Reader<'a> {
    pipeline: &'a Pipeline<'a>,
    start: Position,
    read_bytes: &'a AtomicU64,
    next_number: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        pipeline: &'a Pipeline<'a>,
        start: Position,
        read_bytes: &'a AtomicU64,
    ) -> Self {
        Self { pipeline, start, read_bytes, next_number: 0 }
    }

    /// Reads all inputs; `send` returns false when no more is wanted.
    pub(super) fn for_each_task(&mut self, send: &mut dyn FnMut(Task) -> bool) -> Result<()> {
        let start = self.start;
        for input in start.input..self.pipeline.inputs.len() {
            let from = if input == start.input { (start.record, start.byte) } else { (0, 0) };
            if !self.read_input(input, from, send)? {
                break;
            }
        }
        Ok(())
    }

    /// Tasks read so far, which is the number of the one that could not be read after an error.
    pub(super) fn num_tasks(&self) -> u64 {
        self.next_number
    }

    fn read_input(
        &mut self,
        input: usize,
        from: (u64, u64),
        send: &mut dyn FnMut(Task) -> bool,
    ) -> Result<bool> {
        let pipeline = self.pipeline;
        let file = &pipeline.inputs[input];
        let documents = pipeline.documents;
        let separator = match (file.kind, &documents.text_documents) {
            (InputKind::Parquet, _) => return self.read_rows(input, from.0, send),
            (InputKind::Text, TextDocuments::Files) => return self.read_document(input, send),
            (InputKind::Text, TextDocuments::Separated { separator }) => separator.as_bytes(),
            (InputKind::Text, TextDocuments::Lines) | (InputKind::JsonLines, _) => LINE_FEED,
        };
        let stream = ByteStream::open(file, from.1, self.read_bytes)?;
        let mut records = RecordReader::new(stream, separator, pipeline.sizes.block_bytes, from);
        while let Some(block) = records.next()? {
            if !self.send(input, Work::Records(block), send) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn send(&mut self, input: usize, work: Work, send: &mut dyn FnMut(Task) -> bool) -> bool {
        let number = self.next_number;
        self.next_number += 1;
        send(Task { number, input, work })
    }

    fn read_rows(
        &mut self,
        input: usize,
        first_row: u64,
        send: &mut dyn FnMut(Task) -> bool,
    ) -> Result<bool> {
        let pipeline = self.pipeline;
        let score = pipeline.documents.score.as_ref().map(|score| score.field.as_str());
        let names = (pipeline.documents.text_field.as_str(), score);
        let place = (pipeline.scratch, self.read_bytes);
        let file = &pipeline.inputs[input];
        let mut columns = ColumnsReader::open(file, names, first_row, place)?;
        while let Some(rows) = columns.next(ROWS_AT_ONCE)? {
            if !self.send(input, Work::Rows(rows), send) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a file that is one document, in parts that can be encoded one by one.
    fn read_document(&mut self, input: usize, send: &mut dyn FnMut(Task) -> bool) -> Result<bool> {
        let pipeline = self.pipeline;
        let file = &pipeline.inputs[input];
        let checks_utf8 = pipeline.documents.on_bad_utf8 == BadUtf8::Skip
            && !pipeline.tokenizer.takes_any_bytes();
        let mut known_hash = None;
        if checks_utf8 || pipeline.needs_hash_first {
            let (is_utf8, hash) = look_through(file, pipeline.sizes.block_bytes)?;
            if checks_utf8 && !is_utf8 {
                return Ok(self.send(input, Work::NotUtf8, send));
            }
            known_hash = Some(hash);
        }
        let mut parts = PartReader {
            stream: ByteStream::open(file, 0, self.read_bytes)?,
            chunking: pipeline.chunking(),
            block_bytes: pipeline.sizes.block_bytes,
            pending: Vec::new(),
        };
        let (mut hash, mut start_byte) = (XxHash3_128::new(), 0);
        loop {
            let (bytes, is_last) = parts.next()?;
            hash.write(&bytes);
            let hash = known_hash.or_else(|| is_last.then(|| hash.finish_128()));
            let num_bytes = bytes.len() as u64;
            let part = Work::Part { bytes, start_byte, is_last, hash };
            start_byte += num_bytes;
            if !self.send(input, part, send) {
                return Ok(false);
            }
            if is_last {
                return Ok(true);
            }
        }
    }
}

/// Cuts a document where its tokenizer does not mind.
struct PartReader<'a> {
    stream: ByteStream<'a>,
    chunking: Chunking,
    block_bytes: usize,
    /// What follows the last cut.
    pending: Vec<u8>,
}

impl PartReader<'_> {
    /// The next part, and whether it is the last; at least one comes, which may be empty.
    fn next(&mut self) -> Result<(Vec<u8>, bool)> {
        loop {
            let num_old = self.pending.len();
            let is_end = self.stream.read(self.block_bytes, &mut self.pending)? == 0;
            if is_end {
                return Ok((std::mem::take(&mut self.pending), true));
            }
            let cut = match self.chunking {
                Chunking::AnyByte => Some(self.pending.len()),
                // What is older holds no border behind the first byte, or it had been cut there.
                Chunking::LineEnds => last_border(&self.pending, num_old.max(1)),
                Chunking::Whole => None,
            };
            if let Some(cut) = cut {
                let rest = self.pending.split_off(cut);
                return Ok((std::mem::replace(&mut self.pending, rest), false));
            }
        }
    }
}

/// The last border at or after byte `from`: a place between an ASCII letter or digit and a line
/// feed. Why text may be cut there is proved in `tokenize/line_ends.rs`.
pub(super) fn last_border(text: &[u8], from: usize) -> Option<usize> {
    let is_border = |&at: &usize| text[at] == b'\n' && text[at - 1].is_ascii_alphanumeric();
    (from.max(1)..text.len()).rev().find(is_border)
}

/// Whether a file is UTF-8, and its hash, without holding it.
fn look_through(file: &InputFile, block_bytes: usize) -> Result<(bool, u128)> {
    // This pass is not what the counter counts.
    let counter = AtomicU64::new(0);
    let mut stream = ByteStream::open(file, 0, &counter)?;
    let (mut hash, mut is_utf8) = (XxHash3_128::new(), true);
    // A character may be cut by the end of a block; its start waits here.
    let mut bytes = Vec::new();
    loop {
        let num_old = bytes.len();
        if stream.read(block_bytes, &mut bytes)? == 0 {
            return Ok((is_utf8 && bytes.is_empty(), hash.finish_128()));
        }
        hash.write(&bytes[num_old..]);
        let cut = match std::str::from_utf8(&bytes) {
            Ok(_) => bytes.len(),
            Err(bad) if bad.error_len().is_none() => bad.valid_up_to(),
            Err(_) => {
                is_utf8 = false;
                bytes.len()
            }
        };
        bytes.drain(..cut);
    }
}
