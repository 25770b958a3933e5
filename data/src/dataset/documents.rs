//! The index of a shard's documents: where each ends, where it came from, and a hash of its text.
//!
//! 64 bytes of header (magic `GROVEDOC`, version 1, bytes an entry, number of entries, XXH3-64 of
//! the entries, XXH3-64 of header bytes 0..56), then 40 bytes a document, little-endian: the token
//! after its last (u64, counted in the shard), its record in its input (u64), the number of its
//! input in the manifest (u32), zero (u32), XXH3-128 of its text (u128).

use std::hash::Hasher as _;
use std::path::{Path, PathBuf};

use twox_hash::XxHash3_64;

use crate::error::{Error, Result, SourceError};
use crate::mapped::MappedFile;
use crate::publication::Publication;

const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 40;
const MAGIC: [u8; 8] = *b"GROVEDOC";
const VERSION: u32 = 1;
const AT_CHECKSUM: usize = 56;

/// What the index holds of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DocumentRecord {
    /// The token after the document's last, counted in its shard.
    pub(crate) end_token: u64,
    /// Line, row or record of its input, from 0.
    pub(crate) record: u64,
    /// Number of its input in the manifest.
    pub(crate) input: u32,
    /// XXH3-128 of its text.
    pub(crate) hash: u128,
}

/// Streams the index of one shard.
pub(crate) struct DocumentWriter {
    file: Publication,
    payload_hash: XxHash3_64,
    num_documents: u64,
}

impl DocumentWriter {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = Publication::create(path, HEADER_BYTES)?;
        Ok(Self { file, payload_hash: XxHash3_64::new(), num_documents: 0 })
    }

    /// Appends a document.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`].
    pub(crate) fn write(&mut self, record: DocumentRecord) -> Result<()> {
        let mut entry = [0; ENTRY_BYTES];
        entry[..8].copy_from_slice(&record.end_token.to_le_bytes());
        entry[8..16].copy_from_slice(&record.record.to_le_bytes());
        entry[16..20].copy_from_slice(&record.input.to_le_bytes());
        entry[24..].copy_from_slice(&record.hash.to_le_bytes());
        self.payload_hash.write(&entry);
        self.num_documents += 1;
        self.file.write(&entry)
    }

    /// Publishes the index.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`].
    pub(crate) fn finish(self) -> Result<()> {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(ENTRY_BYTES as u32).to_le_bytes());
        header[16..24].copy_from_slice(&self.num_documents.to_le_bytes());
        header[24..32].copy_from_slice(&self.payload_hash.finish().to_le_bytes());
        let checksum = XxHash3_64::oneshot(&header[..AT_CHECKSUM]);
        header[AT_CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        self.file.publish(&header)
    }
}

/// The index of one shard, mapped.
#[derive(Debug)]
pub(crate) struct DocumentFile {
    path: PathBuf,
    map: MappedFile,
}

impl DocumentFile {
    /// Opens an index and checks its header, length and last entry against the shard.
    ///
    /// # Errors
    /// [`SourceError::Damaged`] by name and reason; [`Error::Io`] if it is missing.
    pub(crate) fn open(path: &Path, num_tokens: u64, num_documents: u64) -> Result<Self> {
        let map = MappedFile::open(path, "open the document index")?;
        let refuse =
            |cause: String| Err(Error::from(SourceError::Damaged { path: path.to_owned(), cause }));
        let Some(header) = map.first_chunk::<HEADER_BYTES>() else {
            return refuse(format!("it ends at byte {}, inside its header", map.len()));
        };
        let checksum = XxHash3_64::oneshot(&header[..AT_CHECKSUM]).to_le_bytes();
        if header[..8] != MAGIC || header[8..12] != VERSION.to_le_bytes() {
            return refuse("it is no document index of version 1".to_owned());
        }
        if header[AT_CHECKSUM..] != checksum {
            return refuse("the checksum of its header (byte 56) is wrong".to_owned());
        }
        let expected = HEADER_BYTES as u64 + num_documents * ENTRY_BYTES as u64;
        if map.len() as u64 != expected || header[16..24] != num_documents.to_le_bytes() {
            let found = map.len();
            return refuse(format!(
                "it has {found} bytes, and {num_documents} documents need {expected}"
            ));
        }
        let file = Self { path: path.to_owned(), map };
        let end = num_documents.checked_sub(1).map_or(0, |last| file.get(last).end_token);
        if end != num_tokens {
            return refuse(format!(
                "its last document ends at token {end}, its shard at {num_tokens}"
            ));
        }
        Ok(file)
    }

    /// Documents in the shard.
    pub(crate) fn num_documents(&self) -> u64 {
        ((self.map.len() - HEADER_BYTES) / ENTRY_BYTES) as u64
    }

    /// Document `index` of the shard, from 0.
    pub(crate) fn get(&self, index: u64) -> DocumentRecord {
        let start = HEADER_BYTES + index as usize * ENTRY_BYTES;
        let entry: &[u8; ENTRY_BYTES] =
            self.map[start..].first_chunk().expect("the caller stays below num_documents");
        let u64_at = |at: usize| {
            u64::from_le_bytes(entry[at..at + 8].try_into().expect("the range is 8 bytes long"))
        };
        DocumentRecord {
            end_token: u64_at(0),
            record: u64_at(8),
            input: u64_at(16) as u32,
            hash: u128::from(u64_at(24)) | u128::from(u64_at(32)) << 64,
        }
    }

    /// Reads all entries and compares them with the checksum in the header.
    ///
    /// # Errors
    /// [`SourceError::Damaged`] if they differ.
    pub(crate) fn verify(&self) -> Result<()> {
        if self.map[24..32] == XxHash3_64::oneshot(&self.map[HEADER_BYTES..]).to_le_bytes() {
            return Ok(());
        }
        let cause = "the checksum of its entries (byte 24) is wrong".to_owned();
        Err(SourceError::Damaged { path: self.path.clone(), cause }.into())
    }
}
