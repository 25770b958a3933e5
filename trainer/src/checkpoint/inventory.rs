//! What lies in a run's folder of checkpoints, for people to read: whole, damaged and unfinished.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Error;
use super::find::entries;
use super::layout::{Entry, MANIFEST};
use super::manifest::Manifest;

/// One folder that bears a checkpoint's name.
#[derive(Debug)]
pub struct Item {
    /// Its step.
    pub step: u64,
    /// Where it is.
    pub folder: PathBuf,
    /// Bytes of all files in it.
    pub bytes: u64,
    /// When it was published: the time of its manifest, else of the folder.
    pub written: SystemTime,
    /// What it is good for.
    pub condition: Condition,
}

/// What a folder of checkpoints is good for.
#[derive(Debug)]
pub enum Condition {
    /// All files of its manifest are there with their sizes.
    Whole,
    /// It bears a checkpoint's name and is not whole.
    Damaged(Error),
    /// A save or a removal that is going on, or did not end.
    Unfinished,
    /// The former checkpoint of a step that is being saved again.
    Replaced,
}

/// All folders of a run's checkpoints, by step. Contents are not read; see [`super::faults`].
///
/// # Errors
/// [`Error::Io`] if a folder cannot be read. A run without checkpoints is no error.
pub fn inventory(run_folder: &Path) -> Result<Vec<Item>, Error> {
    let items = entries(run_folder)?.into_iter().map(|(entry, folder)| {
        let (step, condition) = match entry {
            Entry::Whole(step) => (step, condition_of(&folder)),
            Entry::Partial(step) => (step, Condition::Unfinished),
            Entry::Replaced(step) => (step, Condition::Replaced),
        };
        let failed = |cause| Error::Io { action: "read", path: folder.clone(), cause };
        let bytes = folder_bytes(&folder).map_err(failed)?;
        let manifest = fs::metadata(folder.join(MANIFEST));
        let metadata = manifest.or_else(|_| fs::metadata(&folder)).map_err(failed)?;
        let written = metadata.modified().map_err(failed)?;
        Ok(Item { step, folder, bytes, written, condition })
    });
    let mut items = items.collect::<Result<Vec<_>, Error>>()?;
    items.sort_by(|a, b| (a.step, &a.folder).cmp(&(b.step, &b.folder)));
    Ok(items)
}

fn condition_of(folder: &Path) -> Condition {
    match Manifest::read(folder).and_then(|manifest| manifest.check_sizes(folder)) {
        Ok(()) => Condition::Whole,
        Err(error) => Condition::Damaged(error),
    }
}

/// Bytes of all files below a folder; what is removed meanwhile counts nothing.
pub(super) fn folder_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path())?,
            Ok(metadata) => metadata.len(),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => 0,
            Err(cause) => return Err(cause),
        };
    }
    Ok(bytes)
}
