//! Text cut into blocks of whole records: what the reading thread does, so that all else can be
//! done by the others.

use memchr::memmem::Finder;

use super::stream::ByteStream;
use crate::error::Result;

/// Some whole records, each with its separator but perhaps the last of a file.
pub(crate) struct Block {
    pub(crate) bytes: Vec<u8>,
    /// Number, from 0, of the first record in its file.
    pub(crate) first_record: u64,
    /// Its first byte in the decompressed file.
    pub(crate) start_byte: u64,
}

/// Reads blocks of at least `block_bytes`, which end where a record does.
pub(crate) struct RecordReader<'a> {
    stream: ByteStream<'a>,
    separator: Finder<'a>,
    block_bytes: usize,
    /// The record that was begun at the end of the last block.
    rest: Vec<u8>,
    next_record: u64,
    next_byte: u64,
}

impl<'a> RecordReader<'a> {
    /// Continues at record `first_record`, whose first byte is where `stream` stands.
    pub(crate) fn new(
        stream: ByteStream<'a>,
        separator: &'a [u8],
        block_bytes: usize,
        (first_record, start_byte): (u64, u64),
    ) -> Self {
        let separator = Finder::new(separator);
        let (next_record, next_byte) = (first_record, start_byte);
        Self { stream, separator, block_bytes, rest: Vec::new(), next_record, next_byte }
    }

    /// The next block, `None` at the end. A record longer than a block is a block of its own.
    ///
    /// # Errors
    /// Those of [`ByteStream::read`].
    pub(crate) fn next(&mut self) -> Result<Option<Block>> {
        let width = self.separator.needle().len();
        let mut bytes = std::mem::take(&mut self.rest);
        // Bytes before this one are known to hold no separator.
        let mut searched = 0;
        loop {
            let is_end = self.stream.read(self.block_bytes, &mut bytes)? == 0;
            let from = searched.min(bytes.len());
            let last = memchr::memmem::rfind(&bytes[from..], self.separator.needle());
            let cut = if is_end { Some(bytes.len()) } else { last.map(|at| from + at + width) };
            let Some(cut) = cut else {
                searched = bytes.len().saturating_sub(width - 1);
                continue;
            };
            if cut == 0 {
                return Ok(None);
            }
            self.rest = bytes.split_off(cut);
            let (first_record, start_byte) = (self.next_record, self.next_byte);
            self.next_record += self.separator.find_iter(&bytes).count() as u64;
            self.next_byte += bytes.len() as u64;
            return Ok(Some(Block { bytes, first_record, start_byte }));
        }
    }
}

/// The records of a block, without their separators, and the byte in the block where each ends,
/// separator included.
pub(crate) fn split_records<'a>(
    bytes: &'a [u8],
    separator: &'a [u8],
) -> impl Iterator<Item = (&'a [u8], usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == bytes.len() {
            return None;
        }
        let found = memchr::memmem::find(&bytes[start..], separator);
        let (end, next) = match found {
            Some(at) => (start + at, start + at + separator.len()),
            None => (bytes.len(), bytes.len()),
        };
        let record = &bytes[start..end];
        start = next;
        Some((record, next))
    })
}
