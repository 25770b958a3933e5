//! Writes a token file as a stream and publishes it whole: temporary name, fsync, rename.

use std::hash::Hasher as _;
use std::path::Path;

use twox_hash::XxHash3_64;

use super::header::{HEADER_BYTES, Header, TokenDtype};
use crate::error::{Error, Result};
use crate::publication::Publication;

/// Streams token ids into a file that appears under its name only when it is complete.
///
/// Tokens go to a temporary file beside `path`, which is removed when the writer is dropped before
/// [`TokenWriter::finish`]. A process that is killed outright leaves that file behind; its name is
/// `.NAME.*.partial`, and its header is blank, so it cannot be taken for a token file.
pub struct TokenWriter {
    file: Publication,
    header: Header,
    payload_hash: XxHash3_64,
    /// Encoded bytes of the current call, kept to reuse its allocation.
    encoded: Vec<u8>,
}

impl TokenWriter {
    /// Starts a token file that will appear at `path`; the dtype is the narrowest that fits.
    ///
    /// # Errors
    /// [`Error::Zero`] if `vocab_size` is 0; [`Error::NotAFile`] if `path` has no file name;
    /// [`Error::Io`] if the temporary file cannot be made in the folder of `path`.
    pub fn create(path: impl AsRef<Path>, vocab_size: u32) -> Result<Self> {
        if vocab_size == 0 {
            return Err(Error::Zero { key: "vocab_size" });
        }
        let file = Publication::create(path.as_ref(), HEADER_BYTES as usize)?;
        let dtype = TokenDtype::for_vocab(vocab_size);
        let header = Header { dtype, vocab_size, num_tokens: 0, payload_checksum: 0 };
        Ok(Self { file, header, payload_hash: XxHash3_64::new(), encoded: Vec::new() })
    }

    /// Appends token ids.
    ///
    /// # Errors
    /// [`Error::WrittenTokenId`], before anything of `tokens` is written, if an id is outside the
    /// vocabulary; [`Error::DiskFull`] or [`Error::Io`] if writing fails.
    pub fn write(&mut self, tokens: &[u32]) -> Result<()> {
        let vocab_size = self.header.vocab_size;
        if let Some(index) = tokens.iter().position(|&id| id >= vocab_size) {
            let position = self.header.num_tokens + index as u64;
            let (path, id) = (self.file.path().to_owned(), tokens[index]);
            return Err(Error::WrittenTokenId { path, position, id, vocab_size });
        }
        match self.header.dtype {
            TokenDtype::U8 => narrow(tokens, &mut self.encoded, |id| [id as u8]),
            TokenDtype::U16 => narrow(tokens, &mut self.encoded, |id| (id as u16).to_le_bytes()),
            TokenDtype::U32 => narrow(tokens, &mut self.encoded, u32::to_le_bytes),
        }
        self.payload_hash.write(&self.encoded);
        self.file.write(&self.encoded)?;
        self.header.num_tokens += tokens.len() as u64;
        Ok(())
    }

    /// Tokens appended so far.
    pub fn num_tokens(&self) -> u64 {
        self.header.num_tokens
    }

    /// Writes the header, syncs the file to disk and renames it to its name, replacing a file
    /// that is there. Returns the [fingerprint](super::TokenFile::fingerprint).
    ///
    /// # Errors
    /// [`Error::NoTokens`] if nothing was written; [`Error::DiskFull`] or [`Error::Io`] if the
    /// file cannot be completed, in which case nothing appears at the path.
    pub fn finish(mut self) -> Result<u64> {
        if self.header.num_tokens == 0 {
            return Err(Error::NoTokens { path: self.file.path().to_owned() });
        }
        self.header.payload_checksum = self.payload_hash.finish();
        self.file.publish(&self.header.encode())?;
        Ok(self.header.fingerprint())
    }
}

/// Replaces `out` by the ids as stored, `N` bytes each.
fn narrow<const N: usize>(tokens: &[u32], out: &mut Vec<u8>, encode: impl Fn(u32) -> [u8; N]) {
    out.resize(tokens.len() * N, 0);
    let (slots, _) = out.as_chunks_mut::<N>();
    for (slot, &id) in slots.iter_mut().zip(tokens) {
        *slot = encode(id);
    }
}
