//! A model as it is stored somewhere, under our names and shapes.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use super::Error;
use super::folder::{StoredTensors, companions, config_text, open_weights};
use super::gguf::LlamaGguf;
use crate::checkpoint::{
    self, Checkpoint, Dtype, ExtraFile, TensorFile, TensorRecord, TensorSpec, TensorView,
};
use crate::config::Plan;
use crate::kernel::view;
use crate::model::config::ModelConfig;
use crate::model::folding::{Factors, Folding};

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
    masked: Option<Masked>,
}

#[derive(Debug)]
enum Weights {
    Stored(StoredTensors),
    Gguf(Box<LlamaGguf>),
}

/// What is to be folded into a checkpoint's masters in the midst of a stage's masks.
#[derive(Debug)]
struct Masked {
    folding: Folding,
    /// The checkpoint's step.
    step: u64,
    /// The step at which the masks are 1.
    until: u64,
}

impl Masked {
    fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let saved = checkpoint.run_state();
        // An imported model has no plan, and one of another version no masks.
        let plan = Plan::from_toml(&saved.plan_toml).ok()?;
        let (step, until) = (saved.step, plan.masked_until(saved.step)?);
        let folding = plan.folding(step)?;
        Some(Self { folding, step, until })
    }
}

/// Masters under their factors, in their dtype.
fn folded(factors: &Factors, TensorView { spec, bytes }: TensorView<'_>) -> Vec<u8> {
    let kind = if spec.dtype == Dtype::F64 { Kind::Double } else { Kind::Float };
    let numel = spec.shape.iter().product::<usize>() as i64;
    let values = Tensor::from_data_size(bytes, &[numel], kind);
    view::bytes(&factors.fold(0, &values)).to_vec()
}

impl Source {
    /// Opens a checkpoint (its masters are read, with masks below 1 folded into them), a run's folder (its newest checkpoint), a
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
        let (files, masked) = if folder.join(MASTERS).is_file() {
            // Opened first for its checks.
            let masked = Masked::of(&Checkpoint::open(&folder)?);
            (vec![TensorFile::open(&folder.join(MASTERS))?], masked)
        } else {
            (open_weights(&folder)?, None)
        };
        let (stored, specs) = StoredTensors::new(&folder, &config, files)?;
        let files = companions(&folder, &text);
        let note = "it has no biases: they are 0 from here on, which computes the same";
        let notes = stored.lacks_biases.then(|| note.to_owned()).into_iter().collect();
        let weights = Weights::Stored(stored);
        Ok(Self { path: folder, config, files, notes, specs, weights, masked })
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
            masked: None,
        })
    }

    /// The model's parameters in its order, with their shapes, all as F32.
    #[must_use]
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Refuses a model in the midst of a stage's masks, whose masters are not its weights: the
    /// optimizer's state is that of the masters.
    ///
    /// # Errors
    /// [`Error::Masked`] if it is one.
    pub fn refuse_masked(&self) -> Result<(), Error> {
        let folder = self.path.clone();
        match self.masked {
            Some(Masked { step, until, .. }) => Err(Error::Masked { folder, step, until }),
            None => Ok(()),
        }
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
            Weights::Stored(stored) if stored.lacks_biases && name.ends_with(".bias") => {
                let bytes = Cow::Owned(vec![0; spec.len_bytes()]);
                Ok(TensorRecord { spec: spec.clone(), bytes })
            }
            Weights::Stored(stored) => {
                let (file, stored) = stored.place(name).ok_or_else(unknown)?;
                let view = file.get(stored)?;
                let folding = self.masked.as_ref().map(|masked| &masked.folding);
                let bytes = match folding.and_then(|folding| folding.of(name)) {
                    Some(factors) => Cow::Owned(folded(factors, view)),
                    None => Cow::Borrowed(view.bytes),
                };
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
