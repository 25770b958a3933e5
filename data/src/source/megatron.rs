//! Megatron-LM's indexed dataset: ids in `NAME.bin`, sequences and documents in `NAME.idx`.
//!
//! The index (little-endian): magic `MMIDIDX\0\0`, version 1 (u64), dtype code (u8), number of
//! sequences (u64), number of document marks (u64), then the length of each sequence (i32), its
//! byte in `NAME.bin` (i64), and for each document the sequence it begins with (i64), with the
//! number of sequences as last mark.

use std::path::{Path, PathBuf};

use super::detect::with_ending;
use super::flat::{FlatDtype, FlatFile, Layout};
use crate::error::{Error, Result, SourceError};
use crate::mapped::MappedFile;

const MAGIC: &[u8] = b"MMIDIDX\0\0";
const HEADER_BYTES: u64 = 34;

/// The documents of an index, mapped.
#[derive(Debug)]
pub(super) struct MegatronDocuments {
    map: MappedFile,
    /// Offsets of the sequence pointers and document marks in the index.
    pointers_byte: u64,
    marks_byte: u64,
    num_sequences: u64,
    /// Document marks, one more than documents.
    num_marks: u64,
    num_tokens: u64,
    size_bytes: u64,
}

impl MegatronDocuments {
    pub(super) fn len(&self) -> u64 {
        self.num_marks - 1
    }

    /// First token of document `index`; the number of tokens for the one behind the last.
    pub(super) fn start(&self, index: u64) -> u64 {
        let sequence = self.u64_at(self.marks_byte + 8 * index);
        if sequence >= self.num_sequences {
            return self.num_tokens;
        }
        // A damaged pointer must not lead outside the tokens.
        (self.u64_at(self.pointers_byte + 8 * sequence) / self.size_bytes).min(self.num_tokens)
    }

    /// The document that holds a token.
    pub(super) fn containing(&self, token: u64) -> u64 {
        let (mut low, mut high) = (0, self.len());
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if self.start(middle) <= token { low = middle } else { high = middle }
        }
        low
    }

    fn u64_at(&self, at: u64) -> u64 {
        u64_at(&self.map, at as usize)
    }
}

/// The two files that a path names (`NAME`, `NAME.bin` or `NAME.idx`), if both are there.
pub(super) fn files_of(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let is_ours = path.extension().is_some_and(|ending| ending == "bin" || ending == "idx");
    let stem = if is_ours { path.with_extension("") } else { path.to_owned() };
    let (bin, idx) = (with_ending(&stem, "bin"), with_ending(&stem, "idx"));
    (bin.is_file() && idx.is_file()).then_some((bin, idx))
}

/// Opens both files.
///
/// # Errors
/// [`SourceError::Format`] if one is missing or the index is none; [`SourceError::Damaged`] if
/// sizes do not agree.
pub(super) fn open(path: &Path, vocab_size: Option<u32>) -> Result<FlatFile> {
    let Some((bin, idx)) = files_of(path) else {
        let cause = "a Megatron data set is a .bin and an .idx file side by side".to_owned();
        return Err(SourceError::Format { path: path.to_owned(), cause }.into());
    };
    let map = MappedFile::open(&idx, "open the Megatron index")?;
    let refuse = |cause: String| Error::from(SourceError::Damaged { path: idx.clone(), cause });
    if map.len() < HEADER_BYTES as usize || !map.starts_with(MAGIC) || u64_at(&map, 9) != 1 {
        let cause = "it does not begin with MMIDIDX and version 1".to_owned();
        return Err(SourceError::Format { path: idx, cause }.into());
    }
    let dtype = |size_bytes, is_signed| Ok(FlatDtype { size_bytes, is_signed });
    let dtype = match map[17] {
        1 => dtype(1, false),
        2 => dtype(1, true),
        3 => dtype(2, true),
        4 => dtype(4, true),
        5 => dtype(8, true),
        8 => dtype(2, false),
        code => Err(refuse(format!("byte 17: dtype {code} is none of integers (1 to 5, 8)"))),
    }?;
    let (num_sequences, num_marks) = (u64_at(&map, 18), u64_at(&map, 26));
    // Wide, because damaged counts may be anything.
    let pointers_byte = u128::from(HEADER_BYTES) + 4 * u128::from(num_sequences);
    let marks_byte = pointers_byte + 8 * u128::from(num_sequences);
    let end = marks_byte + 8 * u128::from(num_marks);
    // Multimodal sets have one byte a sequence behind the marks.
    if end > map.len() as u128 || num_sequences == 0 || num_marks < 2 {
        return Err(refuse(format!(
            "it has {} bytes, and {num_sequences} sequences with {num_marks} document marks need \
             {end}, at least one sequence and two marks",
            map.len()
        )));
    }
    let last = num_sequences as usize - 1;
    let length = u64::from(u64_at(&map, HEADER_BYTES as usize + 4 * last) as u32);
    let pointer = u64_at(&map, pointers_byte as usize + 8 * last);
    let num_tokens = pointer / dtype.size_bytes + length;
    let documents = MegatronDocuments {
        map,
        pointers_byte: pointers_byte as u64,
        marks_byte: marks_byte as u64,
        num_sequences,
        num_marks,
        num_tokens,
        size_bytes: dtype.size_bytes,
    };
    let tokens = MappedFile::open(&bin, "open the Megatron tokens")?;
    let layout = Layout { start_byte: 0, dtype, num_tokens, documents: Some(documents) };
    FlatFile::new(&bin, tokens, layout, vocab_size)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the range is 8 bytes long"))
}
