//! Finding the checkpoints of a run, and telling the whole ones from the damaged.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::Error;
use super::layout::{Entry, checkpoints_folder, latest_link, latest_target};
use super::manifest::Manifest;

/// A whole checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Whole {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub folder: PathBuf,
}

/// A folder that bears a checkpoint's name and is not whole.
#[derive(Debug)]
pub struct Damaged {
    /// Its step.
    pub step: u64,
    /// What is wrong with it.
    pub error: Error,
}

/// All checkpoints of a run.
#[derive(Debug, Default)]
pub struct Survey {
    /// Whole ones, oldest first.
    pub whole: Vec<Whole>,
    /// Damaged ones, oldest first; a resume should name them before it passes over them.
    pub damaged: Vec<Damaged>,
}

/// Looks at all checkpoints of a run. A run without any is no error.
///
/// A checkpoint is whole if its manifest can be read and each file has its size; content is not
/// read. Folders of saves that did not end are passed over.
///
/// # Errors
/// [`Error::Io`] if the folder of checkpoints exists and cannot be read.
pub fn survey(run_folder: &Path) -> Result<Survey, Error> {
    let mut steps: Vec<_> = entries(run_folder)?
        .into_iter()
        .filter_map(|(entry, folder)| match entry {
            Entry::Whole(step) => Some((step, folder)),
            Entry::Partial(_) | Entry::Replaced(_) => None,
        })
        .collect();
    steps.sort();
    let mut survey = Survey::default();
    for (step, folder) in steps {
        match Manifest::read(&folder).and_then(|manifest| manifest.check_sizes(&folder)) {
            Ok(()) => survey.whole.push(Whole { step, folder }),
            Err(error) => survey.damaged.push(Damaged { step, error }),
        }
    }
    Ok(survey)
}

/// The whole checkpoints of a run, oldest first.
///
/// # Errors
/// As [`survey`].
pub fn list(run_folder: &Path) -> Result<Vec<Whole>, Error> {
    Ok(survey(run_folder)?.whole)
}

/// The newest whole checkpoint of a run; `None` if there is none.
///
/// # Errors
/// As [`survey`].
pub fn latest(run_folder: &Path) -> Result<Option<Whole>, Error> {
    Ok(list(run_folder)?.pop())
}

/// Where a run's checkpoint of a step is, if there is one.
#[must_use]
pub fn folder_of(run_folder: &Path, step: u64) -> PathBuf {
    Entry::Whole(step).path(run_folder)
}

/// Points the run's link `latest` to the whole checkpoint of `step`. The link is made under another
/// name and takes its own by a rename, so that it leads to a whole checkpoint at any moment.
///
/// # Errors
/// If the link cannot be made or renamed.
pub fn point_latest(run_folder: &Path, step: u64) -> io::Result<()> {
    let (link, next) = latest_link(run_folder);
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(latest_target(step), &next)?;
    fs::rename(&next, &link)?;
    File::open(run_folder)?.sync_all()
}

/// All folders of a run's checkpoints that bear one of our names, in no order.
pub(super) fn entries(run_folder: &Path) -> Result<Vec<(Entry, PathBuf)>, Error> {
    let parent = checkpoints_folder(run_folder);
    let failed = |cause| Error::Io { action: "read", path: parent.clone(), cause };
    let listing = match fs::read_dir(&parent) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        outcome => outcome.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(failed)?;
        if let Some(parsed) = entry.file_name().to_str().and_then(Entry::parse) {
            found.push((parsed, entry.path()));
        }
    }
    Ok(found)
}
