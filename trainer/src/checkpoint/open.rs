//! Opening a checkpoint: its run state at once, its tensors in place.

use std::fs;
use std::path::{Path, PathBuf};

use super::layout::{CONFIG, MASTERS, OPTIMIZER, RUN_STATE};
use super::manifest::Manifest;
use super::{Error, RunStateRecord, TensorFile, TensorView};

/// An open checkpoint whose files all have the sizes of its manifest.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    manifest: Manifest,
    run_state: RunStateRecord,
    model: TensorFile,
    masters: TensorFile,
    optimizer: TensorFile,
}

impl Checkpoint {
    /// Opens a checkpoint folder. Sizes are checked, content is not; see [`Checkpoint::verify`].
    ///
    /// # Errors
    /// [`Error::NoManifest`] for a plain Hugging Face model or an unfinished save,
    /// [`Error::Damaged`] with all files that are missing or of another size, and others if a
    /// file cannot be read.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let manifest = Manifest::read(folder)?;
        manifest.check_sizes(folder)?;
        let path = folder.join(RUN_STATE);
        let text = fs::read(&path).map_err(|cause| Error::Io {
            action: "read",
            path: path.clone(),
            cause,
        })?;
        let run_state: RunStateRecord = serde_json::from_slice(&text)
            .map_err(|error| Error::Json { path: path.clone(), reason: error.to_string() })?;
        if run_state.step != manifest.step {
            let (found, expected) = (run_state.step, manifest.step);
            let reason = format!("step is {found}, manifest.json says {expected}");
            return Err(Error::Json { path, reason });
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            manifest,
            run_state,
            model: TensorFile::open_model(folder)?,
            masters: TensorFile::open(&folder.join(MASTERS))?,
            optimizer: TensorFile::open(&folder.join(OPTIMIZER))?,
        })
    }

    /// Where the checkpoint is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the run was.
    #[must_use]
    pub fn run_state(&self) -> &RunStateRecord {
        &self.run_state
    }

    /// `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read.
    pub fn config_json(&self) -> Result<String, Error> {
        let path = self.folder.join(CONFIG);
        fs::read_to_string(&path).map_err(|cause| Error::Io { action: "read", path, cause })
    }

    /// The model's weights.
    #[must_use]
    pub fn model(&self) -> &TensorFile {
        &self.model
    }

    /// The master weights.
    #[must_use]
    pub fn masters(&self) -> &TensorFile {
        &self.masters
    }

    /// The optimizer's state, named `<kind>/<parameter>`.
    #[must_use]
    pub fn optimizer(&self) -> &TensorFile {
        &self.optimizer
    }

    /// One state tensor of one parameter.
    ///
    /// # Errors
    /// [`Error::NoTensor`] if there is none.
    pub fn optimizer_state(&self, kind: &str, parameter: &str) -> Result<TensorView<'_>, Error> {
        self.optimizer.get(&format!("{kind}/{parameter}"))
    }

    /// Reads all files and compares their hashes with the manifest.
    ///
    /// # Errors
    /// [`Error::Damaged`] with all files that are missing, of another size or content, or not in
    /// the manifest.
    pub fn verify(&self) -> Result<(), Error> {
        self.manifest.check_content(&self.folder)
    }
}
