//! A read-only memory map of a file that nobody changes: the only unsafe code of this room.

#![allow(unsafe_code, reason = "a memory map is unsafe by nature; this is its only place")]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// The bytes of a file, mapped on opening and read from disk when they are touched.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps a file; `action` names the opening in messages ("open the token file").
    ///
    /// # Errors
    /// [`Error::Io`] if it is missing or unreadable, [`Error::NotAFile`] for a folder, pipe or
    /// device, [`Error::EmptyFile`].
    pub(crate) fn open(path: &Path, action: &'static str) -> Result<Self> {
        // Asked before opening, because opening a pipe waits for its writer.
        let metadata = path.metadata().map_err(Error::io(action, path))?;
        if !metadata.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        if metadata.len() == 0 {
            return Err(Error::EmptyFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(Error::io(action, path))?;
        // SAFETY: the map is read-only and private to this value. Its bytes are only read as
        // plain integers, so no content is invalid. Grove publishes data files by rename and
        // never writes them in place, so the bytes do not change beneath the map; a user who
        // truncates one while it is open gets a bus error, as the README says.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Self { map })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
