//! A checkpoint that is being written by several ranks: a `.partial-` folder that one rename
//! publishes.
//!
//! All ranks write, then all hash, then rank 0 publishes; between these stages the ranks must know
//! of each other that all are done, which is the caller's business. When a stage fails on any rank,
//! rank 0 discards the folder, and what was there before is as it was.

use std::collections::{BTreeMap, btree_map};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::layout::{Entry, GROVE, MANIFEST, MODEL_INDEX, checkpoints_folder};
use super::manifest::{FileEntry, Manifest};
use super::retain::clear_stale_but;
use super::small_files::SmallFiles;
use super::{Blueprint, Error, Snapshot, point_latest};

/// What a rank leaves in the folder for rank 0, and rank 0 takes away: its number follows.
const RECEIPT_PREFIX: &str = ".receipt-";

/// One rank's hand in saving one checkpoint.
#[derive(Debug)]
pub struct Staging {
    run_folder: PathBuf,
    blueprint: Arc<Blueprint>,
    rank: usize,
    degree: usize,
    /// On rank 0: what is no tensor.
    small_files: Option<SmallFiles>,
    /// Bytes of values that this rank has written.
    value_bytes: u64,
}

/// What a rank has done.
#[derive(Debug, Serialize, Deserialize)]
struct Receipt {
    value_bytes: u64,
    files: BTreeMap<String, FileEntry>,
}

impl Staging {
    /// For `rank` of `degree`; rank 0 brings the files that are no tensors. Nothing is written yet.
    #[must_use]
    pub fn new(
        run_folder: &Path,
        blueprint: Arc<Blueprint>,
        (rank, degree): (usize, usize),
        small_files: Option<SmallFiles>,
    ) -> Self {
        let run_folder = run_folder.to_path_buf();
        Self { run_folder, blueprint, rank, degree, small_files, value_bytes: 0 }
    }

    /// The step of the checkpoint.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.blueprint.step()
    }

    /// The first stage, on every rank: writes this rank's values at their places and puts them on
    /// the disk. Rank 0 writes all else and removes what earlier saves have left.
    ///
    /// # Errors
    /// [`Error::Save`] if something cannot be written.
    pub fn write(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        self.write_pieces(snapshot.pieces())
    }

    /// As [`Staging::write`], of values that are wherever they are.
    pub(super) fn write_pieces<'a>(
        &mut self,
        pieces: impl Iterator<Item = (usize, u64, &'a [u8])>,
    ) -> Result<(), Error> {
        if self.rank == 0 {
            clear_stale_but(&self.run_folder, Some(self.step()))?;
        }
        let folder = self.folder();
        let grove = folder.join(GROVE);
        self.at(&grove, || fs::create_dir_all(&grove))?;
        let mut open = BTreeMap::new();
        if self.small_files.is_some() {
            for (file, layout) in self.blueprint.files().iter().enumerate() {
                self.write_at(&mut open, file, (0, &layout.head))?;
            }
        }
        let mut value_bytes = 0;
        for (file, offset, bytes) in pieces {
            self.write_at(&mut open, file, (offset, bytes))?;
            value_bytes += bytes.len() as u64;
        }
        self.value_bytes = value_bytes;
        for (path, file) in open.values() {
            self.at(path, || file.sync_all())?;
        }
        let index = self.blueprint.index().map(|text| (MODEL_INDEX.to_string(), text.as_bytes()));
        if let Some(small_files) = &self.small_files {
            for (name, bytes) in small_files.iter().chain(index) {
                let path = folder.join(name);
                self.at(&path, || write_synced(&path, bytes))?;
            }
        }
        Ok(())
    }

    /// The second stage, on every rank when all have written: hashes this rank's share of the files.
    ///
    /// # Errors
    /// [`Error::Save`] if a file cannot be read, or the hashes not be left for rank 0.
    pub fn hash(&self) -> Result<(), Error> {
        let files = self.blueprint.files().iter().skip(self.rank).step_by(self.degree);
        let files = files.map(|layout| {
            let entry = self.hash_file(&layout.file)?;
            Ok((layout.file.clone(), entry))
        });
        let files = files.collect::<Result<_, Error>>()?;
        let receipt = Receipt { value_bytes: self.value_bytes, files };
        let receipt = serde_json::to_vec(&receipt).expect("text and integers are JSON");
        let path = self.receipt(self.rank);
        self.at(&path, || write_synced(&path, &receipt))
    }

    /// The last stage, on rank 0 when all have hashed: writes the manifest, puts all on the disk,
    /// gives the folder its name and points `latest` to it. Returns the folder.
    ///
    /// A checkpoint of the same step is replaced. Between the two renames that takes it bears
    /// another name, under which [`super::clear_stale`] finds it should the process end there.
    ///
    /// # Errors
    /// [`Error::Save`] if something cannot be read, written or renamed, or a file is not as long as
    /// it should be or has values that nobody brought.
    pub fn publish(&self) -> Result<PathBuf, Error> {
        let folder = self.folder();
        let mut files = self.collect_receipts()?;
        let small_files = self.small_files.as_ref().expect("rank 0 publishes");
        let index = self.blueprint.index().map(|_| MODEL_INDEX.to_string());
        for name in small_files.iter().map(|(name, _)| name).chain(index) {
            let entry = self.hash_file(&name)?;
            files.insert(name, entry);
        }
        let manifest = Manifest::new(self.step(), files);
        let manifest = serde_json::to_vec_pretty(&manifest).expect("text and integers are JSON");
        let path = folder.join(MANIFEST);
        self.at(&path, || write_synced(&path, &manifest))?;
        self.at(&folder, || {
            sync_folder(&folder.join(GROVE))?;
            sync_folder(&folder)
        })?;
        let published = self.give_name(&folder)?;
        let latest = self.run_folder.join("latest");
        self.at(&latest, || point_latest(&self.run_folder, self.step()))?;
        Ok(published)
    }

    /// On rank 0, after a failure and when no rank works on it any more: removes the folder.
    pub fn discard(&self) {
        // A folder that stays is never taken for a checkpoint, and the next save removes it.
        let _ = fs::remove_dir_all(self.folder());
    }

    /// Writes bytes into one of the files, which is opened once.
    fn write_at(
        &self,
        open: &mut BTreeMap<usize, (PathBuf, File)>,
        file: usize,
        (offset, bytes): (u64, &[u8]),
    ) -> Result<(), Error> {
        if let btree_map::Entry::Vacant(vacant) = open.entry(file) {
            let path = self.folder().join(&self.blueprint.files()[file].file);
            let mut options = OpenOptions::new();
            // Not cut: other ranks write to it.
            options.write(true).create(true).truncate(false);
            let opened = self.at(&path, || options.open(&path))?;
            vacant.insert((path, opened));
        }
        let (path, file) = &open[&file];
        self.at(path, || file.write_all_at(bytes, offset))
    }

    fn give_name(&self, folder: &Path) -> Result<PathBuf, Error> {
        let published = Entry::Whole(self.step()).path(&self.run_folder);
        let replaced = Entry::Replaced(self.step()).path(&self.run_folder);
        let is_replacing = published.exists();
        if is_replacing {
            self.at(&published, || fs::rename(&published, &replaced))?;
        }
        if let Err(error) = self.at(&published, || fs::rename(folder, &published)) {
            if is_replacing {
                // Best effort: clear_stale does the same at the next save.
                let _ = fs::rename(&replaced, &published);
            }
            return Err(error);
        }
        let parent = checkpoints_folder(&self.run_folder);
        self.at(&parent, || sync_folder(&parent))?;
        if is_replacing {
            self.at(&replaced, || fs::remove_dir_all(&replaced))?;
        }
        Ok(published)
    }

    /// What the ranks have hashed, once it is known to be everything.
    fn collect_receipts(&self) -> Result<BTreeMap<String, FileEntry>, Error> {
        let folder = self.folder();
        let (mut files, mut value_bytes) = (BTreeMap::new(), 0);
        for rank in 0..self.degree {
            let path = self.receipt(rank);
            let receipt: Receipt = self.at(&path, || {
                let receipt = serde_json::from_slice(&fs::read(&path)?)?;
                fs::remove_file(&path)?;
                Ok(receipt)
            })?;
            value_bytes += receipt.value_bytes;
            files.extend(receipt.files);
        }
        for layout in self.blueprint.files() {
            let found = files.get(&layout.file).map_or(0, |entry| entry.bytes);
            self.expect_bytes(&folder.join(&layout.file), "a file", layout.len_bytes, found)?;
        }
        // A file that nobody has written the middle of is as long as a whole one.
        self.expect_bytes(&folder, "values", self.blueprint.value_bytes(), value_bytes)?;
        Ok(files)
    }

    fn expect_bytes(
        &self,
        path: &Path,
        what: &str,
        expected: u64,
        found: u64,
    ) -> Result<(), Error> {
        self.at(path, || {
            if found == expected {
                return Ok(());
            }
            let reason = format!("expected {what} of {expected} bytes, the ranks wrote {found}");
            Err(io::Error::new(io::ErrorKind::InvalidData, reason))
        })
    }

    fn hash_file(&self, name: &str) -> Result<FileEntry, Error> {
        let path = self.folder().join(name);
        self.at(&path, || FileEntry::of(&path))
    }

    fn folder(&self) -> PathBuf {
        Entry::Partial(self.step()).path(&self.run_folder)
    }

    fn receipt(&self, rank: usize) -> PathBuf {
        self.folder().join(format!("{RECEIPT_PREFIX}{rank}"))
    }

    /// Does `work` and names `path` if it fails.
    fn at<T>(&self, path: &Path, work: impl FnOnce() -> io::Result<T>) -> Result<T, Error> {
        let needed_bytes = self.blueprint.len_bytes();
        work().map_err(|cause| Error::Save { path: path.to_path_buf(), needed_bytes, cause })
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}

/// Puts the entries of a folder on the disk: a file without its name is lost at a power cut.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
