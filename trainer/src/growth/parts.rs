//! Where values come from: a model in memory or in files, or one that is grown from another as its
//! values are asked for.

use std::collections::BTreeMap;

use grove_optim::StateKind;
use tch::{Kind, Tensor};

use super::anatomy::{Anatomy, Assembly, At};
use crate::model::config::ModelConfig;
use crate::model::plain::NamedWeights;

/// Which values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Plane {
    /// Its weights.
    Weight,
    /// A state that the optimizer keeps for it.
    State(StateKind),
}

/// How a plane's values follow from gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// They are weights.
    Weights,
    /// They are averages of gradients: what multiplies a gradient multiplies them.
    Gradients,
    /// They are averages of products of two gradients: it multiplies them twice.
    Squares,
}

impl Plane {
    /// How the values follow from gradients.
    ///
    /// Panics for the scales of quantized states, which are taken apart when they are read.
    pub fn nature(self) -> Nature {
        match self {
            Self::Weight | Self::State(StateKind::BaseIterate) => Nature::Weights,
            Self::State(StateKind::FirstMoment) => Nature::Gradients,
            Self::State(StateKind::SecondMoment | StateKind::Hessian) => Nature::Squares,
            Self::State(other) => panic!("{other:?} is read with what it scales"),
        }
    }
}

/// A model by its parts, in fp64 on the CPU.
pub trait Parts {
    /// What the model is.
    fn config(&self) -> &ModelConfig;

    /// The values of a part, `[out, in]` or `[out]`, f64.
    ///
    /// Panics if the model has no such part, or nothing of this plane.
    fn value(&self, at: At, plane: Plane) -> Tensor;

    /// Updates that the optimizer's state of the part has seen.
    fn steps(&self, at: At) -> u64;

    /// The states that the optimizer keeps of every parameter.
    fn states(&self) -> Vec<StateKind>;

    /// Adds what was done to the part on its way from the source; nothing for what is as it was.
    fn describe(&self, at: At, notes: &mut Vec<String>);
}

/// A parameter of a model from its parts.
///
/// # Shapes
/// Returns `assembly.spec.shape`, f64.
pub fn param_value(model: &dyn Parts, assembly: &Assembly, plane: Plane) -> Tensor {
    let parts: Vec<Tensor> = assembly.parts.iter().map(|&at| model.value(at, plane)).collect();
    assembly.assemble(&parts)
}

/// All parameters of a model by name, in `kind`.
pub fn named_weights(model: &dyn Parts, kind: Kind) -> NamedWeights {
    let anatomy = Anatomy::new(model.config());
    let values = anatomy.params().iter().map(|assembly| {
        let value = param_value(model, assembly, Plane::Weight).to_kind(kind);
        (assembly.spec.name.clone(), value)
    });
    values.collect()
}

/// A model in memory.
#[derive(Debug)]
pub struct NamedModel {
    config: ModelConfig,
    anatomy: Anatomy,
    planes: BTreeMap<Plane, NamedWeights>,
    steps: BTreeMap<String, u64>,
}

impl NamedModel {
    /// A model of these weights without optimizer state.
    pub fn new(config: &ModelConfig, weights: NamedWeights) -> Self {
        let planes = BTreeMap::from([(Plane::Weight, weights)]);
        let (config, anatomy) = (config.clone(), Anatomy::new(config));
        Self { config, anatomy, planes, steps: BTreeMap::new() }
    }

    /// With a state of every parameter, after so many updates of it.
    #[must_use]
    pub fn with_state(mut self, kind: StateKind, values: NamedWeights, steps: u64) -> Self {
        self.steps = values.keys().map(|name| (name.clone(), steps)).collect();
        self.planes.insert(Plane::State(kind), values);
        self
    }
}

impl Parts for NamedModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn value(&self, at: At, plane: Plane) -> Tensor {
        let param = &self.planes[&plane][self.anatomy.name(at)];
        self.anatomy.extract(at, &param.to_kind(Kind::Double))
    }

    fn steps(&self, at: At) -> u64 {
        self.steps.get(self.anatomy.name(at)).copied().unwrap_or(0)
    }

    fn states(&self) -> Vec<StateKind> {
        let kinds = self.planes.keys().filter_map(|plane| match plane {
            Plane::Weight => None,
            Plane::State(kind) => Some(*kind),
        });
        kinds.collect()
    }

    fn describe(&self, _: At, _: &mut Vec<String>) {}
}
