//! The 64-byte header of a token file: layout, encoding and the checks made at each open.

use std::ops::Range;
use std::path::Path;

use twox_hash::XxHash3_64;

use crate::error::{Error, Result};

/// Bytes before the first token.
pub(super) const HEADER_BYTES: u64 = 64;
const MAGIC: [u8; 8] = *b"GROVETOK";
const VERSION: u32 = 1;

const AT_MAGIC: Range<usize> = 0..8;
const AT_VERSION: Range<usize> = 8..12;
const AT_DTYPE: Range<usize> = 12..16;
const AT_VOCAB_SIZE: Range<usize> = 16..20;
const AT_RESERVED_A: Range<usize> = 20..24;
const AT_NUM_TOKENS: Range<usize> = 24..32;
const AT_PAYLOAD_CHECKSUM: Range<usize> = 32..40;
const AT_RESERVED_B: Range<usize> = 40..56;
const AT_HEADER_CHECKSUM: Range<usize> = 56..64;

/// How token ids are stored: little-endian unsigned integers of 1, 2 or 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenDtype {
    /// One byte; vocabularies of up to 256.
    U8,
    /// Two bytes; vocabularies of up to 65,536.
    U16,
    /// Four bytes; vocabularies of up to 2^32 - 1.
    U32,
}

impl TokenDtype {
    /// The narrowest dtype that holds every id below `vocab_size`.
    pub fn for_vocab(vocab_size: u32) -> Self {
        match vocab_size {
            0..=0x100 => Self::U8,
            0x101..=0x1_0000 => Self::U16,
            _ => Self::U32,
        }
    }

    /// Bytes per token, which is also the dtype's code in the header.
    pub fn size_bytes(self) -> u64 {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// Largest vocabulary the dtype holds.
    fn max_vocab_size(self) -> u64 {
        1 << (8 * self.size_bytes())
    }

    fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::U8),
            2 => Some(Self::U16),
            4 => Some(Self::U32),
            _ => None,
        }
    }
}

/// What a header says, in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) dtype: TokenDtype,
    pub(super) vocab_size: u32,
    pub(super) num_tokens: u64,
    /// XXH3-64 of the token bytes.
    pub(super) payload_checksum: u64,
}

impl Header {
    /// The header as it stands in the file.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[AT_MAGIC].copy_from_slice(&MAGIC);
        bytes[AT_VERSION].copy_from_slice(&VERSION.to_le_bytes());
        bytes[AT_DTYPE].copy_from_slice(&(self.dtype.size_bytes() as u32).to_le_bytes());
        bytes[AT_VOCAB_SIZE].copy_from_slice(&self.vocab_size.to_le_bytes());
        bytes[AT_NUM_TOKENS].copy_from_slice(&self.num_tokens.to_le_bytes());
        bytes[AT_PAYLOAD_CHECKSUM].copy_from_slice(&self.payload_checksum.to_le_bytes());
        let checksum = header_checksum(&bytes);
        bytes[AT_HEADER_CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// XXH3-64 of the header, which covers dtype, sizes and the checksum of the tokens.
    pub(super) fn fingerprint(&self) -> u64 {
        header_checksum(&self.encode())
    }

    /// Reads and checks the header of the file at `path`.
    ///
    /// # Errors
    /// [`Error::Header`] for the first field, in file order, that does not hold what it must. The
    /// file's length is checked by [`Header::check_length`].
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES as usize], path: &Path) -> Result<Self> {
        let refuse = |at: Range<usize>, field, expected: String, found: String, remedy| {
            let byte = at.start as u64;
            Err(Error::Header { path: path.to_owned(), byte, field, expected, found, remedy })
        };
        if bytes[AT_MAGIC] != MAGIC {
            let (expected, found) = (quoted(&MAGIC), quoted(&bytes[AT_MAGIC]));
            let remedy = "this is not a token file, so make one with `grove tokenize`";
            return refuse(AT_MAGIC, "magic", expected, found, remedy);
        }
        let version = u32_at(bytes, AT_VERSION);
        if version != VERSION {
            let remedy = "another release of Grove wrote it, so tokenize it again";
            let (expected, found) = (VERSION.to_string(), version.to_string());
            return refuse(AT_VERSION, "version", expected, found, remedy);
        }
        const DAMAGED: &str = "the header is damaged, so copy or tokenize the file again";
        let code = u32_at(bytes, AT_DTYPE);
        let Some(dtype) = TokenDtype::from_code(code) else {
            let expected = "1 (u8), 2 (u16) or 4 (u32)".to_owned();
            return refuse(AT_DTYPE, "dtype", expected, code.to_string(), DAMAGED);
        };
        let vocab_size = u32_at(bytes, AT_VOCAB_SIZE);
        let max = dtype.max_vocab_size();
        if vocab_size == 0 || u64::from(vocab_size) > max {
            let expected = format!("1 to {max} for tokens of {} bytes", dtype.size_bytes());
            return refuse(AT_VOCAB_SIZE, "vocab_size", expected, vocab_size.to_string(), DAMAGED);
        }
        let num_tokens = u64_at(bytes, AT_NUM_TOKENS);
        if num_tokens == 0 {
            let (expected, found) = ("at least 1".to_owned(), "0".to_owned());
            return refuse(AT_NUM_TOKENS, "num_tokens", expected, found, DAMAGED);
        }
        for reserved in [AT_RESERVED_A, AT_RESERVED_B] {
            if let Some(index) = reserved.clone().find(|&index| bytes[index] != 0) {
                let found = format!("{:#04x}", bytes[index]);
                return refuse(index..index, "reserved byte", "0".to_owned(), found, DAMAGED);
            }
        }
        let (stored, actual) = (u64_at(bytes, AT_HEADER_CHECKSUM), header_checksum(bytes));
        if stored != actual {
            let (expected, found) = (format!("{actual:016x}"), format!("{stored:016x}"));
            return refuse(AT_HEADER_CHECKSUM, "header checksum", expected, found, DAMAGED);
        }
        let payload_checksum = u64_at(bytes, AT_PAYLOAD_CHECKSUM);
        Ok(Self { dtype, vocab_size, num_tokens, payload_checksum })
    }

    /// Compares the length of the file with what the header announces.
    ///
    /// # Errors
    /// [`Error::Truncated`] or [`Error::TooLong`].
    pub(super) fn check_length(&self, found_bytes: u64, path: &Path) -> Result<()> {
        let num_tokens = self.num_tokens;
        let payload_bytes = u128::from(num_tokens) * u128::from(self.dtype.size_bytes());
        let expected_bytes = u128::from(HEADER_BYTES) + payload_bytes;
        let path = path.to_owned();
        match u128::from(found_bytes).cmp(&expected_bytes) {
            std::cmp::Ordering::Less => {
                Err(Error::Truncated { path, num_tokens, expected_bytes, found_bytes })
            }
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => {
                Err(Error::TooLong { path, num_tokens, expected_bytes, found_bytes })
            }
        }
    }
}

fn header_checksum(bytes: &[u8; HEADER_BYTES as usize]) -> u64 {
    XxHash3_64::oneshot(&bytes[..AT_HEADER_CHECKSUM.start])
}

fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

fn u32_at(bytes: &[u8], at: Range<usize>) -> u32 {
    u32::from_le_bytes(bytes[at].try_into().expect("the field's range is 4 bytes long"))
}

fn u64_at(bytes: &[u8], at: Range<usize>) -> u64 {
    u64::from_le_bytes(bytes[at].try_into().expect("the field's range is 8 bytes long"))
}
