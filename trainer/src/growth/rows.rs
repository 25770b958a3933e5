//! More token ids and more positions, and a head of its own: what grows at both ends of a model.
//!
//! New rows start at random, as in a new model. The logits of old ids at old positions do not
//! change; the probabilities do, as new ids take their part.

use grove_optim::StateKind;
use tch::{Kind, Tensor};

use super::anatomy::{Anatomy, At, Axis, Part};
use super::noise::normal;
use super::parts::{Nature, Parts, Plane};
use super::shape::{untied, with_rows};
use crate::model::config::ModelConfig;

/// A model with more rows in embedding, head and positions.
pub struct Rows<'a> {
    source: Box<dyn Parts + 'a>,
    config: ModelConfig,
    names: Anatomy,
    seed: u64,
}

impl<'a> Rows<'a> {
    /// `source` with the vocabulary and positions of `target`.
    pub fn new(source: Box<dyn Parts + 'a>, target: &ModelConfig, seed: u64) -> Self {
        let config = with_rows(source.config(), target);
        Self { names: Anatomy::new(&config), source, config, seed }
    }

    /// The rows that a part has to get.
    fn added(&self, at: At) -> usize {
        let axis = at.part.axes().0;
        if !matches!(axis, Axis::Vocabulary | Axis::Positions) {
            return 0;
        }
        axis.len(&self.config.spec()) - axis.len(&self.source.config().spec())
    }
}

impl Parts for Rows<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn value(&self, at: At, plane: Plane) -> Tensor {
        let old = self.source.value(at, plane);
        let added = self.added(at) as i64;
        if added == 0 {
            return old;
        }
        let shape = [added, old.size()[1]];
        let rows = match plane.nature() {
            Nature::Weights => {
                let std = self.config.spec().initializer_range;
                normal(self.seed, &format!("{}/rows", self.names.name(at)), &shape, std)
            }
            Nature::Gradients => Tensor::zeros(shape, (Kind::Double, old.device())),
            // Never zero beside a counter that is not.
            Nature::Squares => {
                old.mean_dim([0i64].as_slice(), true, Kind::Double).expand(shape, false)
            }
        };
        Tensor::cat(&[old, rows], 0)
    }

    fn steps(&self, at: At) -> u64 {
        self.source.steps(at)
    }

    fn states(&self) -> Vec<StateKind> {
        self.source.states()
    }

    fn describe(&self, at: At, notes: &mut Vec<String>) {
        self.source.describe(at, notes);
        match self.added(at) {
            0 => {}
            added => notes.push(format!("{added} new rows at random")),
        }
    }
}

/// A model whose head is no longer its embedding, but starts as a copy of it.
pub struct Untied<'a> {
    source: Box<dyn Parts + 'a>,
    config: ModelConfig,
}

impl<'a> Untied<'a> {
    /// `source`, whose head is tied, with a head of its own.
    pub fn new(source: Box<dyn Parts + 'a>) -> Self {
        Self { config: untied(source.config()), source }
    }
}

/// Where the head's values come from.
const EMBEDDING: At = At { layer: None, part: Part::Embedding };

impl Parts for Untied<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn value(&self, at: At, plane: Plane) -> Tensor {
        if at.part != Part::Head {
            return self.source.value(at, plane);
        }
        let value = self.source.value(EMBEDDING, plane);
        // The embedding's moments are those of both uses together, and cannot be told apart.
        if plane.nature() == Nature::Weights { value } else { value.zeros_like() }
    }

    fn steps(&self, at: At) -> u64 {
        if at.part == Part::Head { 0 } else { self.source.steps(at) }
    }

    fn states(&self) -> Vec<StateKind> {
        self.source.states()
    }

    fn describe(&self, at: At, notes: &mut Vec<String>) {
        if at.part == Part::Head {
            notes.push("a copy of the embedding".to_owned());
        } else {
            self.source.describe(at, notes);
        }
    }
}
