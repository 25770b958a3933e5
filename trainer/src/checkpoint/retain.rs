//! Removing checkpoints: old ones by number, and what unfinished saves left behind.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::find::entries;
use super::layout::Entry;
use super::{Error, Whole, list};

/// Removes all but the newest `keep_last` whole checkpoints and returns the removed ones.
///
/// Damaged folders neither count nor are removed: they are the user's to look at. A folder loses
/// its name before its files, so one that is half removed is never taken for a checkpoint.
///
/// # Errors
/// [`Error::Io`] if a folder cannot be renamed or removed.
pub fn prune(run_folder: &Path, keep_last: NonZeroUsize) -> Result<Vec<Whole>, Error> {
    let mut old = list(run_folder)?;
    old.truncate(old.len().saturating_sub(keep_last.get()));
    old.iter().try_for_each(|whole| remove(run_folder, whole))?;
    Ok(old)
}

/// Removes one checkpoint, its name first.
pub(super) fn remove(run_folder: &Path, Whole { step, folder }: &Whole) -> Result<(), Error> {
    let doomed = Entry::Partial(*step).path(run_folder);
    at("remove", &doomed, || match fs::remove_dir_all(&doomed) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    })?;
    at("rename", folder, || fs::rename(folder, &doomed))?;
    at("remove", &doomed, || fs::remove_dir_all(&doomed))
}

/// Removes what saves and removals that did not end have left; [`super::save`] does it first.
///
/// A checkpoint that was about to be replaced gets its name back if its successor did not make
/// it. Call it on one rank, before [`super::latest`], when a run starts.
///
/// # Errors
/// [`Error::Io`] if a folder cannot be renamed or removed.
pub fn clear_stale(run_folder: &Path) -> Result<(), Error> {
    for (entry, folder) in entries(run_folder)? {
        let published = match entry {
            Entry::Whole(_) => continue,
            Entry::Partial(_) => None,
            Entry::Replaced(step) => Some(Entry::Whole(step).path(run_folder)),
        };
        match published.filter(|published: &PathBuf| !published.exists()) {
            Some(published) => at("rename", &folder, || fs::rename(&folder, &published))?,
            None => at("remove", &folder, || fs::remove_dir_all(&folder))?,
        }
    }
    Ok(())
}

/// Does `work` and names what was tried with which folder if it fails.
fn at(
    action: &'static str,
    path: &Path,
    work: impl FnOnce() -> io::Result<()>,
) -> Result<(), Error> {
    work().map_err(|cause| Error::Io { action, path: path.to_path_buf(), cause })
}
