//! The token file: one long sequence of token ids on disk, memory-mapped.
//!
//! Opening reads 64 bytes, whatever the length of the file; tokens are checked as they are read.

mod header;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};

use twox_hash::XxHash3_64;

pub use header::TokenDtype;
use header::{HEADER_BYTES, Header};
pub use writer::TokenWriter;

use crate::error::{Error, Result};
use crate::mapped::MappedFile;

/// A token file, opened and mapped. Reading needs no lock and no system call.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    header: Header,
    map: MappedFile,
}

impl TokenFile {
    /// Opens a token file and checks its header and length, not its tokens.
    ///
    /// The file must not be changed while it is open: [`TokenWriter`] never changes one, it
    /// publishes a new file under the name and leaves the old one to those who have it open.
    ///
    /// # Errors
    /// [`Error::Io`] if it is missing or unreadable, and by name and byte [`Error::NotAFile`],
    /// [`Error::EmptyFile`], [`Error::TruncatedHeader`], [`Error::Header`], [`Error::Truncated`],
    /// [`Error::TooLong`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let map = MappedFile::open(&path, "open the token file")?;
        let found_bytes = map.len() as u64;
        let Some(bytes) = map.first_chunk() else {
            return Err(Error::TruncatedHeader { path, expected_bytes: HEADER_BYTES, found_bytes });
        };
        let header = Header::decode(bytes, &path)?;
        header.check_length(found_bytes, &path)?;
        Ok(Self { path, header, map })
    }

    /// Where the file lies, as given to [`TokenFile::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens in the file; at least 1.
    pub fn num_tokens(&self) -> u64 {
        self.header.num_tokens
    }

    /// Every id is below this.
    pub fn vocab_size(&self) -> u32 {
        self.header.vocab_size
    }

    /// How ids are stored.
    pub fn dtype(&self) -> TokenDtype {
        self.header.dtype
    }

    /// A 64-bit name of the content (tokens, dtype and vocabulary size), read from the header.
    /// Equal content has the same fingerprint on every machine; a checkpoint stores it, so that a
    /// resume on other data can be refused.
    pub fn fingerprint(&self) -> u64 {
        self.header.fingerprint()
    }

    /// Fills `out` with the tokens from `start` on.
    ///
    /// # Errors
    /// [`Error::OutsideFile`] if the file ends before `start + out.len()`;
    /// [`Error::StoredTokenId`] with the byte offset if an id is outside the vocabulary, in which
    /// case the content of `out` is of no use.
    pub fn read(&self, start: u64, out: &mut [u32]) -> Result<()> {
        let num_tokens = self.header.num_tokens;
        let end = start.saturating_add(out.len() as u64);
        if end > num_tokens {
            return Err(Error::OutsideFile { path: self.path.clone(), start, end, num_tokens });
        }
        let size_bytes = self.header.dtype.size_bytes();
        // Within the map, whose length was checked against num_tokens, so this fits usize.
        let at = |token: u64| (token * size_bytes) as usize;
        let bytes = &self.payload()[at(start)..at(end)];
        let max_id = match self.header.dtype {
            TokenDtype::U8 => widen(bytes, out, |[id]: [u8; 1]| u32::from(id)),
            TokenDtype::U16 => widen(bytes, out, |id| u32::from(u16::from_le_bytes(id))),
            TokenDtype::U32 => widen(bytes, out, u32::from_le_bytes),
        };
        let vocab_size = self.header.vocab_size;
        if max_id < vocab_size {
            return Ok(());
        }
        let is_outside = |&id: &u32| id >= vocab_size;
        let index = out.iter().position(is_outside).expect("the maximum is one of them");
        let byte = HEADER_BYTES + (start + index as u64) * size_bytes;
        Err(Error::StoredTokenId { path: self.path.clone(), byte, id: out[index], vocab_size })
    }

    /// Reads the whole file and compares it with the checksum in the header.
    ///
    /// # Errors
    /// [`Error::PayloadChecksum`] if they differ.
    pub fn verify(&self) -> Result<()> {
        let (expected, found) = (self.header.payload_checksum, XxHash3_64::oneshot(self.payload()));
        if expected == found {
            return Ok(());
        }
        Err(Error::PayloadChecksum { path: self.path.clone(), expected, found })
    }

    /// Offset in the file of a token.
    pub(crate) fn byte_of(&self, token: u64) -> u64 {
        HEADER_BYTES + token * self.header.dtype.size_bytes()
    }

    fn payload(&self) -> &[u8] {
        &self.map[HEADER_BYTES as usize..]
    }
}

/// Widens stored ids of `N` bytes to `u32` and returns the largest, 0 if there is none. One tight
/// loop a width, which the compiler turns into vector code; the maximum is cheaper than a
/// comparison and a branch for each token.
pub(crate) fn widen<const N: usize>(
    bytes: &[u8],
    out: &mut [u32],
    decode: impl Fn([u8; N]) -> u32,
) -> u32 {
    let (ids, _) = bytes.as_chunks::<N>();
    let mut max_id = 0;
    for (slot, &id) in out.iter_mut().zip(ids) {
        *slot = decode(id);
        max_id = max_id.max(*slot);
    }
    max_id
}
