//! A file that grows by whole records only: a record that does not fit leaves no torn tail.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Error;

/// An append-only file whose length always is a whole number of records.
///
/// When [`AppendFile::append`] returns well, other processes see the record, and a killed trainer
/// loses nothing. Records that found no room wait here for the next that does.
#[derive(Debug)]
pub(super) struct AppendFile {
    path: PathBuf,
    file: File,
    whole_bytes: u64,
    /// Whole records that could not be written yet.
    waiting: Vec<u8>,
}

/// Bytes of records that wait at most; when there are more, those that wait are lost.
const WAITING_BYTES: usize = 1 << 20;

impl AppendFile {
    /// Opens `path` for appending, creating it if it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Self::with(path, OpenOptions::new().append(true).create(true))
    }

    /// Creates `path`; an existing file is an error of kind `AlreadyExists`.
    pub(super) fn create_new(path: &Path) -> Result<Self, Error> {
        Self::with(path, OpenOptions::new().append(true).create_new(true))
    }

    fn with(path: &Path, options: &OpenOptions) -> Result<Self, Error> {
        let open = || {
            let file = options.open(path)?;
            let whole_bytes = file.metadata()?.len();
            Ok(Self { path: path.to_path_buf(), file, whole_bytes, waiting: Vec::new() })
        };
        open().map_err(|cause| Error::Open { path: path.to_path_buf(), cause })
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one record behind those that wait, all of them whole or none.
    pub(super) fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        self.waiting.extend_from_slice(record);
        if let Err(cause) = self.file.write_all(&self.waiting) {
            // A full disk takes part of a record; cutting it off keeps the file readable. What
            // cannot be cut off must not be written twice.
            let is_cut = self.file.set_len(self.whole_bytes).is_ok();
            if !is_cut || self.waiting.len() > WAITING_BYTES {
                self.waiting.clear();
            }
            return Err(Error::Append { path: self.path.clone(), cause });
        }
        self.whole_bytes += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    /// Makes the operating system put the file on the disk.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        if !self.waiting.is_empty() {
            self.append(&[])?;
        }
        match self.file.sync_all() {
            // A pipe or a device cannot be synced, and need not be.
            Err(cause) if cause.kind() != io::ErrorKind::InvalidInput => {
                Err(Error::Append { path: self.path.clone(), cause })
            }
            _ => Ok(()),
        }
    }
}
