//! A checkpoint that is being written: a `.partial-` folder that one rename publishes.
//!
//! Dropping a [`Staging`] that was not published removes its folder, so a failed save leaves
//! nothing but the checkpoints that were there before.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Error;
use super::hash::hex;
use super::layout::{Entry, GROVE, MANIFEST, checkpoints_folder};
use super::manifest::{FileEntry, Manifest};

/// Bytes that are written and hashed at a time: small enough to still be in the cache.
const CHUNK_BYTES: usize = 1 << 18;

/// A checkpoint folder that is not yet one.
#[derive(Debug)]
pub(super) struct Staging {
    run_folder: PathBuf,
    step: u64,
    needed_bytes: u64,
    files: BTreeMap<String, FileEntry>,
    is_published: bool,
}

impl Staging {
    /// Creates the folder. `needed_bytes` is for the message should the disk be full.
    pub(super) fn begin(run_folder: &Path, step: u64, needed_bytes: u64) -> Result<Self, Error> {
        let run_folder = run_folder.to_path_buf();
        let files = BTreeMap::new();
        let staging = Self { run_folder, step, needed_bytes, files, is_published: false };
        let grove = staging.folder().join(GROVE);
        staging.at(&grove, || fs::create_dir_all(&grove))?;
        Ok(staging)
    }

    /// Writes one file, puts it on the disk and notes its hash.
    pub(super) fn write_file(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        let path = self.folder().join(name);
        let entry = self.at(&path, || {
            let file = File::create(&path)?;
            let mut writer = HashingWriter { file, hasher: Sha256::new(), bytes: 0 };
            fill(&mut writer)?;
            writer.file.sync_all()?;
            let sha256 = hex(writer.hasher.finalize().as_slice());
            Ok(FileEntry { bytes: writer.bytes, sha256 })
        })?;
        self.files.insert(name.to_string(), entry);
        Ok(())
    }

    /// Writes the manifest, puts all on the disk and gives the folder its name.
    ///
    /// A checkpoint of the same step is replaced. Between the two renames that takes it bears
    /// another name, under which [`super::clear_stale`] finds it should the process end there.
    pub(super) fn publish(mut self) -> Result<PathBuf, Error> {
        let manifest = Manifest::new(self.step, std::mem::take(&mut self.files));
        self.write_file(MANIFEST, |out| Ok(serde_json::to_writer_pretty(out, &manifest)?))?;
        let folder = self.folder();
        let published = Entry::Whole(self.step).path(&self.run_folder);
        let replaced = Entry::Replaced(self.step).path(&self.run_folder);
        let parent = checkpoints_folder(&self.run_folder);
        self.at(&folder, || {
            sync_folder(&folder.join(GROVE))?;
            sync_folder(&folder)
        })?;
        let is_replacing = published.exists();
        if is_replacing {
            self.at(&published, || fs::rename(&published, &replaced))?;
        }
        if let Err(error) = self.at(&published, || fs::rename(&folder, &published)) {
            if is_replacing {
                // Best effort: clear_stale does the same at the next save.
                let _ = fs::rename(&replaced, &published);
            }
            return Err(error);
        }
        self.is_published = true;
        self.at(&parent, || sync_folder(&parent))?;
        if is_replacing {
            self.at(&replaced, || fs::remove_dir_all(&replaced))?;
        }
        Ok(published)
    }

    fn folder(&self) -> PathBuf {
        Entry::Partial(self.step).path(&self.run_folder)
    }

    /// Does `work` and names `path` if it fails.
    fn at<T>(&self, path: &Path, work: impl FnOnce() -> io::Result<T>) -> Result<T, Error> {
        let needed_bytes = self.needed_bytes;
        work().map_err(|cause| Error::Save { path: path.to_path_buf(), needed_bytes, cause })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.is_published {
            // A folder that stays is never taken for a checkpoint, and the next save removes it.
            let _ = fs::remove_dir_all(self.folder());
        }
    }
}

/// A file that hashes what is written to it.
struct HashingWriter {
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl Write for HashingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(CHUNK_BYTES)];
        let count = self.file.write(chunk)?;
        self.hasher.update(&chunk[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Puts the entries of a folder on the disk: a file without its name is lost at a power cut.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
