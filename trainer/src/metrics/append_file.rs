//! A file that grows by whole records only: a record that does not fit leaves no torn tail.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Error;

/// An append-only file whose length always is a whole number of records.
///
/// There is no buffer of our own: when [`AppendFile::append`] returns, other processes see the
/// record, and a killed trainer loses nothing.
#[derive(Debug)]
pub(super) struct AppendFile {
    path: PathBuf,
    file: File,
    whole_bytes: u64,
}

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
            Ok(Self { path: path.to_path_buf(), file, whole_bytes })
        };
        open().map_err(|cause| Error::Open { path: path.to_path_buf(), cause })
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one record, whole or not at all.
    pub(super) fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        if let Err(cause) = self.file.write_all(record) {
            // A full disk takes part of a record; cutting it off keeps the file readable. If
            // that fails too there is nothing left to try, and the first error is the cause.
            let _ = self.file.set_len(self.whole_bytes);
            return Err(Error::Append { path: self.path.clone(), cause });
        }
        self.whole_bytes += record.len() as u64;
        Ok(())
    }

    /// Makes the operating system put the file on the disk.
    pub(super) fn sync(&self) -> Result<(), Error> {
        match self.file.sync_all() {
            // A pipe or a device cannot be synced, and need not be.
            Err(cause) if cause.kind() != io::ErrorKind::InvalidInput => {
                Err(Error::Append { path: self.path.clone(), cause })
            }
            _ => Ok(()),
        }
    }
}
