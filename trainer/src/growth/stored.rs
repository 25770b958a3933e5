//! A model in files, as a source of growth: a checkpoint with its optimizer's state, or the weights
//! of another form that can be imported. Values are read where they are asked for.

use std::collections::BTreeMap;
use std::path::Path;

use grove_optim::StateKind;
use tch::{Kind, Tensor};

use super::anatomy::{Anatomy, At};
use super::parts::{Parts, Plane};
use crate::checkpoint::{self, Checkpoint, Dtype, ExtraFile, TensorView};
use crate::error::Error;
use crate::exchange::Source;
use crate::model::config::ModelConfig;

/// The states that a checkpoint may hold, apart from the scales of quantized ones.
const KINDS: [StateKind; 4] =
    [StateKind::FirstMoment, StateKind::SecondMoment, StateKind::Hessian, StateKind::BaseIterate];

/// An open model.
#[derive(Debug)]
pub struct StoredModel {
    source: Source,
    anatomy: Anatomy,
    checkpoint: Option<Checkpoint>,
    states: Vec<StateKind>,
}

impl StoredModel {
    /// Opens the model in `path`: a run's folder (its newest checkpoint), a checkpoint, a Hugging
    /// Face folder, or a GGUF file.
    ///
    /// # Errors
    /// If there is none, or if its tensors are not those of its config: all are named.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let source = Source::open(path)?;
        source.refuse_masked()?;
        let checkpoint = match source.path.join("manifest.json").is_file() {
            true => Some(Checkpoint::open(&source.path)?),
            false => None,
        };
        let anatomy = Anatomy::new(&source.config);
        let mut model = Self { source, anatomy, checkpoint, states: Vec::new() };
        model.states = model.find_states();
        Ok(model)
    }

    /// Where it was found.
    pub fn folder(&self) -> &Path {
        &self.source.path
    }

    /// The tokenizer's files and others that go with the model.
    pub fn files(&self) -> Vec<ExtraFile<'static>> {
        self.source.files.clone()
    }

    /// The checkpoint, if it is one of ours.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// One hash over its weights as they are stored.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn hash(&self) -> Result<String, Error> {
        let mut names: Vec<&str> =
            self.anatomy.params().iter().map(|param| param.spec.name.as_str()).collect();
        names.sort_unstable();
        let records = names.into_iter().map(|name| self.source.tensor(name));
        let records = records.collect::<Result<Vec<_>, _>>()?;
        let views = records.iter().map(|r| TensorView { spec: &r.spec, bytes: &r.bytes });
        Ok(checkpoint::hash_tensors(views)?)
    }

    /// The states that every parameter has. What only some have, beside a rule that takes others
    /// whole, does not grow.
    fn find_states(&self) -> Vec<StateKind> {
        let Some(checkpoint) = self.checkpoint() else { return Vec::new() };
        let has =
            |kind: StateKind, name: &str| checkpoint.optimizer_state(kind.name(), name).is_ok();
        let all = |kind: &StateKind| {
            self.anatomy.params().iter().all(|param| has(*kind, &param.spec.name))
        };
        KINDS.into_iter().filter(all).collect()
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
        &self.source.config
    }

    fn value(&self, at: At, plane: Plane) -> Tensor {
        let name = self.anatomy.name(at);
        let record = self.source.tensor(name).expect("checked when opened");
        let value = match plane {
            Plane::Weight => read(TensorView { spec: &record.spec, bytes: &record.bytes }),
            Plane::State(kind) => {
                let shape: Vec<i64> = record.spec.shape.iter().map(|&size| size as i64).collect();
                self.state(kind, name, &shape)
            }
        };
        self.anatomy.extract(at, &value)
    }

    fn steps(&self, at: At) -> u64 {
        // Without state there is nothing that a count would correct.
        if self.states.is_empty() {
            return 0;
        }
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
