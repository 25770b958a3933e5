//! The files of a checkpoint that are no tensors: small, written by one rank.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use super::layout::{CONFIG, RUN_STATE, is_own_name};
use super::{Error, RunStateRecord};

/// A file that is stored beside `config.json`.
#[derive(Clone, Debug)]
pub enum ExtraFile<'a> {
    /// A file of this name with this content.
    Content {
        /// A plain file name.
        name: String,
        /// The content.
        bytes: Cow<'a, [u8]>,
    },
    /// A copy of an existing file under its own name.
    Copy {
        /// The existing file.
        from: PathBuf,
    },
}

/// `config.json`, the run's state, and what stands beside them: by path in the checkpoint.
#[derive(Debug)]
pub struct SmallFiles {
    files: Vec<(String, Vec<u8>)>,
}

impl SmallFiles {
    /// Takes everything into memory.
    ///
    /// # Errors
    /// [`Error::ExtraFileName`] if an extra file would not be beside `config.json`, or would be one
    /// of Grove's own; [`Error::Io`] if one that is to be copied cannot be read.
    pub fn new(
        config_json: &str,
        run_state: &RunStateRecord,
        extra_files: &[ExtraFile<'_>],
    ) -> Result<Self, Error> {
        let run_state = serde_json::to_vec_pretty(run_state)
            .expect("integers and text can always be written as JSON");
        let mut files =
            vec![(CONFIG.to_string(), config_json.into()), (RUN_STATE.to_string(), run_state)];
        for file in extra_files {
            files.push(read(file)?);
        }
        Ok(Self { files })
    }

    /// All files with their content.
    pub(super) fn iter(&self) -> impl Iterator<Item = (String, &[u8])> {
        self.files.iter().map(|(name, bytes)| (name.clone(), &bytes[..]))
    }
}

fn read(file: &ExtraFile<'_>) -> Result<(String, Vec<u8>), Error> {
    let name = match file {
        ExtraFile::Content { name, .. } => name.clone(),
        ExtraFile::Copy { from } => {
            from.file_name().unwrap_or_default().to_string_lossy().into_owned()
        }
    };
    // A plain name is its own file name: no folder, no "..", not empty.
    let is_plain = Path::new(&name).file_name().is_some_and(|plain| plain == name.as_str());
    if !is_plain || is_own_name(&name) {
        return Err(Error::ExtraFileName { name });
    }
    let bytes = match file {
        ExtraFile::Content { bytes, .. } => bytes.to_vec(),
        ExtraFile::Copy { from } => fs::read(from).map_err(|cause| Error::Io {
            action: "copy",
            path: from.clone(),
            cause,
        })?,
    };
    Ok((name, bytes))
}
