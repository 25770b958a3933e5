//! Writes a token file as a stream and publishes it whole: temporary name, fsync, rename.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::hash::Hasher as _;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use twox_hash::XxHash3_64;

use super::header::{HEADER_BYTES, Header, TokenDtype};
use crate::error::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;
/// Read and write for all, less the umask: what `File::create` gives, so that the other users of a
/// cluster can read the published file.
const FILE_MODE: u32 = 0o666;

/// Streams token ids into a file that appears under its name only when it is complete.
///
/// Tokens go to a temporary file beside `path`, which is removed when the writer is dropped before
/// [`TokenWriter::finish`]. A process that is killed outright leaves that file behind; its name is
/// `.NAME.*.partial`, and its header is blank, so it cannot be taken for a token file.
pub struct TokenWriter {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
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
        let path = path.as_ref().to_owned();
        if vocab_size == 0 {
            return Err(Error::Zero { key: "vocab_size" });
        }
        let mut prefix = OsString::from(".");
        prefix.push(path.file_name().ok_or_else(|| Error::NotAFile { path: path.clone() })?);
        prefix.push(".");
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            .permissions(Permissions::from_mode(FILE_MODE))
            .tempfile_in(folder_of(&path))
            .map_err(Error::io("create a temporary file for", &path))?;
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        file.write_all(&[0; HEADER_BYTES as usize]).map_err(Error::write(&path, 0))?;
        let dtype = TokenDtype::for_vocab(vocab_size);
        let header = Header { dtype, vocab_size, num_tokens: 0, payload_checksum: 0 };
        Ok(Self { path, file, header, payload_hash: XxHash3_64::new(), encoded: Vec::new() })
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
            let (path, id) = (self.path.clone(), tokens[index]);
            return Err(Error::WrittenTokenId { path, position, id, vocab_size });
        }
        match self.header.dtype {
            TokenDtype::U8 => narrow(tokens, &mut self.encoded, |id| [id as u8]),
            TokenDtype::U16 => narrow(tokens, &mut self.encoded, |id| (id as u16).to_le_bytes()),
            TokenDtype::U32 => narrow(tokens, &mut self.encoded, u32::to_le_bytes),
        }
        self.payload_hash.write(&self.encoded);
        let written_bytes = self.written_bytes();
        self.file.write_all(&self.encoded).map_err(Error::write(&self.path, written_bytes))?;
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
            return Err(Error::NoTokens { path: self.path });
        }
        let written_bytes = self.written_bytes();
        let path = self.path;
        self.header.payload_checksum = self.payload_hash.finish();
        let mut file = self
            .file
            .into_inner()
            .map_err(|failed| Error::write(&path, written_bytes)(failed.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(Error::io("seek in", &path))?;
        file.write_all(&self.header.encode()).map_err(Error::write(&path, written_bytes))?;
        file.as_file().sync_all().map_err(Error::write(&path, written_bytes))?;
        file.persist(&path).map_err(|failed| Error::io("publish", &path)(failed.error))?;
        // The rename itself is durable only once the folder is synced.
        let folder = folder_of(&path);
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(Error::io("sync the folder", folder))?;
        Ok(self.header.fingerprint())
    }

    fn written_bytes(&self) -> u64 {
        HEADER_BYTES + self.header.num_tokens * self.header.dtype.size_bytes()
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

/// The folder a file lies in, "." for a bare name.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
