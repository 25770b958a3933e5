//! A text file to a token file, in chunks where the tokenizer allows it.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::token_file::TokenWriter;
use crate::tokenize::{Chunking, Tokenizer};

/// What came of tokenizing a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of text read.
    pub num_bytes: u64,
    /// Tokens written.
    pub num_tokens: u64,
    /// Every id is below this.
    pub vocab_size: u32,
    /// [`TokenFile::fingerprint`](crate::TokenFile::fingerprint) of the file written.
    pub fingerprint: u64,
}

/// How much text is held at once.
#[derive(Clone, Copy)]
struct ChunkSizes {
    /// Text read before it is encoded.
    block_bytes: usize,
    /// Text encoded by one thread at a time.
    piece_bytes: usize,
}

const CHUNK_SIZES: ChunkSizes = ChunkSizes { block_bytes: 8 << 20, piece_bytes: 64 << 10 };

/// Encodes the file at `text_path` and publishes a token file at `out_path`.
///
/// The ids are those of the whole text encoded at once, in order, whatever the number of cores.
/// Bytes, GPT-2 style tokenizers and `tokenizer.json` files that split words like GPT-2, Llama 3
/// or Qwen 2 do are encoded in chunks of some 8 MiB, cut between an ASCII letter or digit and a
/// line feed; for others the whole text and its encoding are held in memory.
///
/// # Errors
/// [`Error::Io`] if the text cannot be read, [`Error::NotUtf8`] with the byte offset in the file,
/// [`Error::NoTokens`] if it is empty, [`Error::DiskFull`], and those of [`Tokenizer::encode`].
/// [`Error::Interrupted`] soon after `stop` is set. On an error nothing appears at `out_path`.
pub fn tokenize_text_file(
    text_path: impl AsRef<Path>,
    out_path: impl AsRef<Path>,
    tokenizer: &Tokenizer,
    stop: &AtomicBool,
) -> Result<Summary> {
    let text_path = text_path.as_ref();
    let text = File::open(text_path).map_err(Error::io("open the text file", text_path))?;
    let mut writer = TokenWriter::create(out_path, tokenizer.vocab_size())?;
    let mut encoder = StreamEncoder { text, text_path, tokenizer, num_bytes: 0 };
    encoder.encode(CHUNK_SIZES, &mut |ids| {
        if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { writer.write(ids) }
    })?;
    let num_tokens = writer.num_tokens();
    let fingerprint = writer.finish()?;
    let (num_bytes, vocab_size) = (encoder.num_bytes, tokenizer.vocab_size());
    Ok(Summary { num_bytes, num_tokens, vocab_size, fingerprint })
}

struct StreamEncoder<'a, R> {
    text: R,
    text_path: &'a Path,
    tokenizer: &'a Tokenizer,
    /// Bytes encoded so far.
    num_bytes: u64,
}

impl<R: Read> StreamEncoder<'_, R> {
    /// Encodes all of the text; `sink` gets the ids in order.
    fn encode(
        &mut self,
        sizes: ChunkSizes,
        sink: &mut impl FnMut(&[u32]) -> Result<()>,
    ) -> Result<()> {
        let chunking = self.tokenizer.chunking();
        // Never holds a border but in its newest part: what is before the last one is encoded.
        let mut pending = Vec::new();
        loop {
            let num_old = pending.len();
            let limit = if chunking == Chunking::Whole { usize::MAX } else { sizes.block_bytes };
            let newest = self.text.by_ref().take(limit as u64).read_to_end(&mut pending);
            let is_end = newest.map_err(Error::io("read", self.text_path))? == 0;
            let cut = match chunking {
                _ if is_end => pending.len(),
                Chunking::AnyByte => pending.len(),
                Chunking::LineEnds => last_border(&pending, num_old).unwrap_or(0),
                Chunking::Whole => 0,
            };
            for ids in self.encode_chunk(&pending[..cut], chunking, sizes.piece_bytes)? {
                sink(&ids)?;
            }
            self.num_bytes += cut as u64;
            pending.drain(..cut);
            if is_end {
                return Ok(());
            }
        }
    }

    fn encode_chunk(
        &self,
        chunk: &[u8],
        chunking: Chunking,
        piece_bytes: usize,
    ) -> Result<Vec<Vec<u32>>> {
        if chunking == Chunking::AnyByte {
            return Ok(vec![self.tokenizer.encode_bytes(chunk)?]);
        }
        let chunk = std::str::from_utf8(chunk).map_err(|bad| Error::NotUtf8 {
            origin: format!("`{}`", self.text_path.display()),
            byte: self.num_bytes + bad.valid_up_to() as u64,
        })?;
        let pieces = match chunking {
            Chunking::LineEnds => split_at_borders(chunk, piece_bytes),
            Chunking::AnyByte | Chunking::Whole => vec![chunk],
        };
        self.tokenizer.encode_pieces(pieces)
    }
}

/// Whether the place before byte `at` is between an ASCII letter or digit and a line feed. Why
/// text may be cut there is proved in `tokenize/line_ends.rs`.
fn is_border(text: &[u8], at: usize) -> bool {
    at > 0 && text[at] == b'\n' && text[at - 1].is_ascii_alphanumeric()
}

/// The last border at or after byte `from`.
fn last_border(text: &[u8], from: usize) -> Option<usize> {
    (from..text.len()).rev().find(|&at| is_border(text, at))
}

/// Cuts a text at borders into pieces of at least `piece_bytes`, the last one excepted.
fn split_at_borders(text: &str, piece_bytes: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let mut after = start + piece_bytes.max(1)..text.len();
        let end = after.find(|&at| is_border(text.as_bytes(), at)).unwrap_or(text.len());
        pieces.push(&text[start..end]);
        start = end;
    }
    pieces
}
