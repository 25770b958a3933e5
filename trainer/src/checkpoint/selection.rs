//! Which checkpoints of a run stay when it is pruned by hand.

use std::num::NonZeroU64;
use std::path::Path;

use super::retain::remove;
use super::{Error, Whole, list};

/// What stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many; the newest stays in any case.
    pub last: usize,
    /// Those whose step is a multiple of it.
    pub every: Option<NonZeroU64>,
}

/// The whole checkpoints that would not stay, oldest first.
///
/// # Errors
/// [`Error::Io`] if the run's folder cannot be read.
pub fn superfluous(run_folder: &Path, keep: Keep) -> Result<Vec<Whole>, Error> {
    let mut old = list(run_folder)?;
    old.truncate(old.len().saturating_sub(keep.last.max(1)));
    old.retain(|whole| keep.every.is_none_or(|every| whole.step % every != 0));
    Ok(old)
}

/// Removes checkpoints of a run, one after the other; each loses its name before its files.
///
/// # Errors
/// [`Error::Io`] at the first that cannot be removed.
pub fn remove_all(run_folder: &Path, checkpoints: &[Whole]) -> Result<(), Error> {
    checkpoints.iter().try_for_each(|whole| remove(run_folder, whole))
}
