//! A model in files, as a source of growth: a checkpoint with its optimizer's state, or the weights
//! of a Hugging Face folder. Values are read where they are asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use grove_optim::StateKind;
use tch::{Kind, Tensor};

use super::anatomy::{Anatomy, At};
use super::error::Error as GrowthError;
use super::parts::{Parts, Plane};
use crate::checkpoint::{self, Checkpoint, Dtype, TensorFile, TensorSpec, TensorView};
use crate::error::Error;
use crate::model::config::ModelConfig;

/// The states that a checkpoint may hold, apart from the scales of quantized ones.
const KINDS: [StateKind; 4] =
    [StateKind::FirstMoment, StateKind::SecondMoment, StateKind::Hessian, StateKind::BaseIterate];

/// An open model.
#[derive(Debug)]
pub struct StoredModel {
    folder: PathBuf,
    config: ModelConfig,
    anatomy: Anatomy,
    weights: Weights,
    states: Vec<StateKind>,
}

/// Where the weights are.
#[derive(Debug)]
enum Weights {
    /// In one of our checkpoints, with all else.
    Checkpoint(Box<Checkpoint>),
    /// In a file, alone.
    File(TensorFile),
}

impl StoredModel {
    /// Opens the model in `path`: a run's folder (its newest checkpoint), a checkpoint, or a
    /// Hugging Face folder with one `model.safetensors`.
    ///
    /// # Errors
    /// If there is none, or if its tensors are not those of its `config.json`: all are named.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let folder = match checkpoint::latest(path)? {
            Some(newest) => newest.folder,
            None => path.to_owned(),
        };
        let config_path = folder.join("config.json");
        if !config_path.is_file() {
            return Err(GrowthError::NoModel { folder }.into());
        }
        let text = std::fs::read_to_string(&config_path).map_err(|source| Error::Io {
            action: "read",
            path: config_path,
            source,
        })?;
        let config = ModelConfig::from_hf_json(&text)?;
        let weights = if folder.join("manifest.json").is_file() {
            Weights::Checkpoint(Box::new(Checkpoint::open(&folder)?))
        } else {
            let file = folder.join("model.safetensors");
            if !file.is_file() {
                return Err(GrowthError::NoModel { folder }.into());
            }
            Weights::File(TensorFile::open(&file)?)
        };
        let anatomy = Anatomy::new(&config);
        let mut model = Self { folder, config, anatomy, weights, states: Vec::new() };
        model.check_weights()?;
        model.states = model.find_states()?;
        Ok(model)
    }

    /// Opens a checkpoint that is already known.
    ///
    /// # Errors
    /// As [`StoredModel::open`].
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        Self::open(checkpoint.folder())
    }

    /// Where it was found.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The checkpoint, if it is one of ours.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        match &self.weights {
            Weights::Checkpoint(checkpoint) => Some(checkpoint),
            Weights::File(_) => None,
        }
    }

    /// One hash over its weights.
    ///
    /// # Errors
    /// If names do not ascend, which they do in a map.
    pub fn hash(&self) -> Result<String, Error> {
        Ok(checkpoint::hash_tensors(self.file().tensors())?)
    }

    fn file(&self) -> &TensorFile {
        match &self.weights {
            Weights::Checkpoint(checkpoint) => checkpoint.masters(),
            Weights::File(file) => file,
        }
    }

    /// Names and shapes; any floating dtype is taken.
    fn check_weights(&self) -> Result<(), Error> {
        let file = self.file();
        let expected = self.anatomy.params().iter().map(|assembly| {
            let name = assembly.spec.name.clone();
            let dtype = file.get(&name).map_or(Dtype::F32, |found| found.spec.dtype);
            let shape = assembly.spec.shape.iter().map(|&size| size as usize).collect();
            TensorSpec { name, dtype, shape }
        });
        Ok(file.check_names(&expected.collect::<Vec<_>>())?)
    }

    /// The states that every parameter has; one that only some have is an error.
    fn find_states(&self) -> Result<Vec<StateKind>, Error> {
        let Some(checkpoint) = self.checkpoint() else { return Ok(Vec::new()) };
        let params = self.anatomy.params();
        let has =
            |kind: StateKind, name: &str| checkpoint.optimizer_state(kind.name(), name).is_ok();
        let any = |kind: &StateKind| params.iter().any(|p| has(*kind, &p.spec.name));
        let found: Vec<StateKind> = KINDS.into_iter().filter(any).collect();
        for &kind in &found {
            for param in params {
                checkpoint.optimizer_state(kind.name(), &param.spec.name)?;
            }
        }
        Ok(found)
    }

    fn state(&self, kind: StateKind, name: &str, shape: &[i64]) -> Tensor {
        let checkpoint = self.checkpoint().expect("only checkpoints have states");
        let view = checkpoint.optimizer_state(kind.name(), name).expect("checked when opened");
        if view.spec.dtype != Dtype::U8 {
            return read(view).view(shape);
        }
        let scale = match kind {
            StateKind::SecondMoment => StateKind::SecondMomentScale,
            _ => StateKind::FirstMomentScale,
        };
        let scales = checkpoint.optimizer_state(scale.name(), name);
        let scales = read(scales.expect("codes are stored with their scales"));
        let scales: Vec<f32> = Vec::try_from(scales.to_kind(Kind::Float)).expect("a vector of f32");
        let mut values = vec![0.0; view.bytes.len()];
        let book = kind.code_book();
        book.dequantize(view.bytes, &scales, &mut values).expect("one scale for each block");
        Tensor::from_slice(&values).to_kind(Kind::Double).view(shape)
    }
}

impl Parts for StoredModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn value(&self, at: At, plane: Plane) -> Tensor {
        let name = self.anatomy.name(at);
        let view = self.file().get(name).expect("checked when opened");
        let value = match plane {
            Plane::Weight => read(view),
            Plane::State(kind) => {
                let shape: Vec<i64> = view.spec.shape.iter().map(|&size| size as i64).collect();
                self.state(kind, name, &shape)
            }
        };
        self.anatomy.extract(at, &value)
    }

    fn steps(&self, at: At) -> u64 {
        let counts: Option<&BTreeMap<String, u64>> =
            self.checkpoint().map(|checkpoint| &checkpoint.run_state().parameter_steps);
        counts.and_then(|counts| counts.get(self.anatomy.name(at))).copied().unwrap_or(0)
    }

    fn states(&self) -> Vec<StateKind> {
        self.states.clone()
    }

    fn describe(&self, _: At, _: &mut Vec<String>) {}
}

/// The values of a stored tensor, f64.
fn read(view: TensorView<'_>) -> Tensor {
    let kind = match view.spec.dtype {
        Dtype::U8 => Kind::Uint8,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
    };
    let shape: Vec<i64> = view.spec.shape.iter().map(|&size| size as i64).collect();
    Tensor::from_data_size(view.bytes, &shape, kind).to_kind(Kind::Double)
}
