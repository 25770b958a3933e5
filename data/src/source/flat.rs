//! Bare ids in a file, behind a header or none: nanoGPT, llm.c, and the payload of others.

use std::path::{Path, PathBuf};

use super::megatron::MegatronDocuments;
use crate::error::{Error, Result, SourceError};
use crate::input::listing::sample;
use crate::mapped::MappedFile;
use crate::token_file::widen;

/// Bytes of llm.c's header: 256 32-bit integers.
const LLM_C_HEADER_BYTES: usize = 1024;

/// How ids are stored in foreign files, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlatDtype {
    /// 1, 2, 4 or 8.
    pub(super) size_bytes: u64,
    pub(super) is_signed: bool,
}

impl FlatDtype {
    pub(super) const U16: Self = Self { size_bytes: 2, is_signed: false };
    pub(super) const U32: Self = Self { size_bytes: 4, is_signed: false };

    /// Ids that are not negative are below this; what is not below 2^32 - 1 is no id.
    fn max_vocab_size(self) -> u32 {
        let num_bits = 8 * self.size_bytes - u64::from(self.is_signed);
        if num_bits < 32 { 1 << num_bits } else { u32::MAX }
    }
}

/// What opening a foreign file found out about it.
pub(super) struct Layout {
    /// Offset of the first token.
    pub(super) start_byte: u64,
    pub(super) dtype: FlatDtype,
    pub(super) num_tokens: u64,
    pub(super) documents: Option<MegatronDocuments>,
}

/// A mapped file of bare ids.
#[derive(Debug)]
pub struct FlatFile {
    path: PathBuf,
    map: MappedFile,
    start_byte: u64,
    dtype: FlatDtype,
    num_tokens: u64,
    vocab_size: u32,
    documents: Option<MegatronDocuments>,
    fingerprint: u64,
}

impl FlatFile {
    /// Puts a mapped file and its layout together.
    ///
    /// # Errors
    /// [`SourceError::Damaged`] if the file is too short or too long for its layout.
    pub(super) fn new(
        path: &Path,
        map: MappedFile,
        layout: Layout,
        vocab_size: Option<u32>,
    ) -> Result<Self> {
        let Layout { start_byte, dtype, num_tokens, documents } = layout;
        let payload = u128::from(num_tokens) * u128::from(dtype.size_bytes);
        let (expected, found) = (u128::from(start_byte) + payload, map.len());
        if expected != found as u128 || num_tokens == 0 {
            let cause = format!(
                "it has {found} bytes, and {num_tokens} tokens of {} bytes behind byte \
                 {start_byte} need {expected}",
                dtype.size_bytes
            );
            return Err(SourceError::Damaged { path: path.to_owned(), cause }.into());
        }
        let (_, fingerprint) = sample(path).map_err(Error::io("read", path))?;
        let max = dtype.max_vocab_size();
        let vocab_size = vocab_size.unwrap_or(max).min(max);
        let path = path.to_owned();
        Ok(Self { path, map, start_byte, dtype, num_tokens, vocab_size, documents, fingerprint })
    }

    pub(super) fn open_nano_gpt(path: &Path, vocab_size: Option<u32>) -> Result<Self> {
        let map = MappedFile::open(path, "open the nanoGPT file")?;
        let dtype = FlatDtype::U16;
        let num_tokens = map.len() as u64 / dtype.size_bytes;
        let layout = Layout { start_byte: 0, dtype, num_tokens, documents: None };
        Self::new(path, map, layout, vocab_size)
    }

    pub(super) fn open_llm_c(path: &Path, vocab_size: Option<u32>) -> Result<Self> {
        let map = MappedFile::open(path, "open the llm.c file")?;
        let dtype = llm_c_dtype(&map).filter(|_| map.len() >= LLM_C_HEADER_BYTES);
        let Some(dtype) = dtype else {
            let cause = "its first 1024 bytes are no header of llm.c (magic 20240520 with version \
                         1, or 20240801 with version 7)";
            let (path, cause) = (path.to_owned(), cause.to_owned());
            return Err(SourceError::Format { path, cause }.into());
        };
        let num_tokens = u64::from(u32_at(&map, 8));
        let layout =
            Layout { start_byte: LLM_C_HEADER_BYTES as u64, dtype, num_tokens, documents: None };
        Self::new(path, map, layout, vocab_size)
    }

    /// Tokens in the file; at least 1.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Every id must be below this.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// The file of ids.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// XXH3-64 of the size and three samples of 64 KiB.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(super) fn documents(&self) -> Option<&MegatronDocuments> {
        self.documents.as_ref()
    }

    pub(super) fn byte_of(&self, token: u64) -> u64 {
        self.start_byte + token * self.dtype.size_bytes
    }

    pub(super) fn read(&self, start: u64, out: &mut [u32]) -> Result<()> {
        let (num_tokens, vocab_size) = (self.num_tokens, self.vocab_size);
        let end = start.saturating_add(out.len() as u64);
        if end > num_tokens {
            return Err(Error::OutsideFile { path: self.path.clone(), start, end, num_tokens });
        }
        // Within the map, whose length was checked against num_tokens, so this fits usize.
        let bytes = &self.map[self.byte_of(start) as usize..self.byte_of(end) as usize];
        let max_id = match self.dtype.size_bytes {
            1 => widen(bytes, out, |[id]: [u8; 1]| u32::from(id)),
            2 => widen(bytes, out, |id| u32::from(u16::from_le_bytes(id))),
            4 => widen(bytes, out, u32::from_le_bytes),
            // What does not fit becomes an id that no vocabulary has.
            _ => widen(bytes, out, |id| u32::try_from(u64::from_le_bytes(id)).unwrap_or(u32::MAX)),
        };
        if max_id < vocab_size {
            return Ok(());
        }
        let index =
            out.iter().position(|&id| id >= vocab_size).expect("the maximum is one of them");
        let byte = self.byte_of(start + index as u64);
        Err(Error::StoredTokenId { path: self.path.clone(), byte, id: out[index], vocab_size })
    }

    pub(super) fn verify(&self) -> Result<()> {
        const TOKENS_AT_ONCE: u64 = 1 << 16;
        let mut ids = vec![0; TOKENS_AT_ONCE as usize];
        for start in (0..self.num_tokens).step_by(TOKENS_AT_ONCE as usize) {
            let len = TOKENS_AT_ONCE.min(self.num_tokens - start) as usize;
            self.read(start, &mut ids[..len])?;
        }
        Ok(())
    }
}

/// How a file of llm.c with this beginning stores ids; `None` if it is no such file.
pub(super) fn llm_c_dtype(head: &[u8]) -> Option<FlatDtype> {
    if head.len() < 12 {
        return None;
    }
    match (u32_at(head, 0), u32_at(head, 4)) {
        (20_240_520, 1) => Some(FlatDtype::U16),
        (20_240_801, 7) => Some(FlatDtype::U32),
        _ => None,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the range is 4 bytes long"))
}
