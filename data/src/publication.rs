//! A file that appears under its name only when it is complete: temporary name, sync, rename.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;
/// Read and write for all, less the umask: what `File::create` gives, so that the other users of a
/// cluster can read the published file.
const FILE_MODE: u32 = 0o666;

/// A file being written.
///
/// Bytes go to a temporary file beside `path`, which is removed when this is dropped before
/// [`Publication::publish`]. A process that is killed outright leaves that file behind, named
/// `.NAME.*.partial`.
pub(crate) struct Publication {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    written_bytes: u64,
}

impl Publication {
    /// Starts a file that will appear at `path`, with a blank header.
    ///
    /// # Errors
    /// [`Error::NotAFile`] if `path` has no file name; [`Error::Io`] if the temporary file cannot
    /// be made in its folder; [`Error::DiskFull`].
    pub(crate) fn create(path: &Path, header_bytes: usize) -> Result<Self> {
        let path = path.to_owned();
        let mut prefix = OsString::from(".");
        prefix.push(path.file_name().ok_or_else(|| Error::NotAFile { path: path.clone() })?);
        prefix.push(".");
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            .permissions(Permissions::from_mode(FILE_MODE))
            .tempfile_in(folder_of(&path))
            .map_err(Error::io("create a temporary file for", &path))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        let mut publication = Self { path, file, written_bytes: 0 };
        publication.write(&vec![0; header_bytes])?;
        Ok(publication)
    }

    /// Where the file will appear.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`].
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::write(&self.path, self.written_bytes))?;
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes the header over the blank, syncs the file to disk and renames it to its name,
    /// replacing a file that is there.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`], in which case nothing appears at the path.
    pub(crate) fn publish(self, header: &[u8]) -> Result<()> {
        let Self { path, file, written_bytes } = self;
        let mut file = file
            .into_inner()
            .map_err(|failed| Error::write(&path, written_bytes)(failed.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(Error::io("seek in", &path))?;
        file.write_all(header).map_err(Error::write(&path, written_bytes))?;
        file.as_file().sync_all().map_err(Error::write(&path, written_bytes))?;
        file.persist(&path).map_err(|failed| Error::io("publish", &path)(failed.error))?;
        // The rename itself is durable only once the folder is synced.
        let folder = folder_of(&path);
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(Error::io("sync the folder", folder))
    }
}

/// The folder a file lies in, "." for a bare name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
