//! A model as it is stored somewhere, under our names and shapes.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::Error;
use super::folder::{StoredTensors, companions, config_text, open_weights};
use super::gguf::LlamaGguf;
use crate::checkpoint::{self, Checkpoint, ExtraFile, TensorFile, TensorRecord, TensorSpec};
use crate::model::config::ModelConfig;

/// The master weights in a checkpoint.
const MASTERS: &str = "grove/masters.safetensors";

/// A model that can be read, whatever form it is stored in.
#[derive(Debug)]
pub struct Source {
    /// The folder or file it is read from: of a run's folder its newest checkpoint.
    pub path: PathBuf,
    /// What the model is.
    pub config: ModelConfig,
    /// The tokenizer's files and others that go with the model.
    pub files: Vec<ExtraFile<'static>>,
    /// What could not be taken over, for the user to read.
    pub notes: Vec<String>,
    specs: Vec<TensorSpec>,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    Stored(StoredTensors),
    Gguf(Box<LlamaGguf>),
}

impl Source {
    /// Opens a checkpoint (its masters are read), a run's folder (its newest checkpoint), a
    /// Hugging Face folder, or a GGUF file. Headers are read and compared with the model, values
    /// are not.
    ///
    /// # Errors
    /// [`Error::NoModel`] if there is nothing of the kind; those of each form.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_file() {
            return Self::open_gguf(path);
        }
        let newest = checkpoint::latest(path)?;
        let folder = newest.map_or_else(|| path.to_owned(), |newest| newest.folder);
        let text = config_text(&folder)?;
        let config = ModelConfig::from_hf_json(&text)?;
        let files = if folder.join(MASTERS).is_file() {
            // Opened first for its checks.
            Checkpoint::open(&folder)?;
            vec![TensorFile::open(&folder.join(MASTERS))?]
        } else {
            open_weights(&folder)?
        };
        let (stored, specs) = StoredTensors::new(&folder, &config, files)?;
        let files = companions(&folder, &text);
        let weights = Weights::Stored(stored);
        Ok(Self { path: folder, config, files, notes: Vec::new(), specs, weights })
    }

    fn open_gguf(path: &Path) -> Result<Self, Error> {
        let model = LlamaGguf::open(path)?;
        let (files, notes) = model.files()?;
        Ok(Self {
            path: path.to_owned(),
            config: model.config().clone(),
            files,
            notes,
            specs: model.specs().to_vec(),
            weights: Weights::Gguf(Box::new(model)),
        })
    }

    /// The model's parameters in its order, with their shapes, all as F32.
    #[must_use]
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// The values of one parameter: borrowed from the file, or decoded into memory.
    ///
    /// # Errors
    /// [`checkpoint::Error::NoTensor`] if the model has none of this name.
    pub fn tensor(&self, name: &str) -> Result<TensorRecord<'_>, Error> {
        let unknown = || checkpoint::Error::NoTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
            count: self.specs.len(),
        };
        let spec = self.specs.iter().find(|spec| spec.name == name).ok_or_else(unknown)?;
        match &self.weights {
            Weights::Stored(stored) => {
                let (file, stored) = stored.place(name).ok_or_else(unknown)?;
                let view = file.get(stored)?;
                let bytes = Cow::Borrowed(view.bytes);
                let spec = TensorSpec { dtype: view.spec.dtype, ..spec.clone() };
                Ok(TensorRecord { spec, bytes })
            }
            Weights::Gguf(model) => {
                let bytes = Cow::Owned(model.values(name).ok_or_else(unknown)?);
                Ok(TensorRecord { spec: spec.clone(), bytes })
            }
        }
    }
}
