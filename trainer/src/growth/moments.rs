//! What becomes of the optimizer's state: mapped with the weights, or dropped with its counter.
//!
//! A second moment of zero beside a counter that goes on would make the first update
//! `(1 - beta1) / sqrt(1 - beta2)` learning rates long, 3.2 at `beta2 = 0.999`: so what is dropped
//! is dropped with its counter, which each parameter has of its own.

use grove_optim::StateKind;
use tch::Tensor;

use super::anatomy::{Anatomy, At};
use super::parts::{Nature, Parts, Plane};
use crate::config::MomentGrowth;
use crate::model::config::ModelConfig;

/// A model whose optimizer's state is dropped in part or whole.
pub struct Moments<'a> {
    source: Box<dyn Parts + 'a>,
    anatomy: Anatomy,
    policy: MomentGrowth,
}

impl<'a> Moments<'a> {
    /// `source` under a policy.
    pub fn new(source: Box<dyn Parts + 'a>, policy: MomentGrowth) -> Self {
        Self { anatomy: Anatomy::new(source.config()), source, policy }
    }

    /// Whether the state of the part's parameter is dropped: a parameter has one counter, so what
    /// one part of it needs, all do.
    fn drops(&self, at: At) -> bool {
        match self.policy {
            MomentGrowth::Map => false,
            MomentGrowth::Fresh => true,
            MomentGrowth::Zero => {
                let name = self.anatomy.name(at);
                let params = self.anatomy.params();
                let own = params.iter().find(|assembly| assembly.spec.name == name);
                own.expect("the part is in this parameter").parts.iter().any(|&part| {
                    let mut notes = Vec::new();
                    self.source.describe(part, &mut notes);
                    !notes.is_empty()
                })
            }
        }
    }
}

impl Parts for Moments<'_> {
    fn config(&self) -> &ModelConfig {
        self.source.config()
    }

    fn value(&self, at: At, plane: Plane) -> Tensor {
        match plane {
            Plane::State(StateKind::BaseIterate) if self.drops(at) => {
                self.source.value(at, Plane::Weight)
            }
            _ if plane.nature() != Nature::Weights && self.drops(at) => {
                self.source.value(at, Plane::Weight).zeros_like()
            }
            _ => self.source.value(at, plane),
        }
    }

    fn steps(&self, at: At) -> u64 {
        if self.drops(at) { 0 } else { self.source.steps(at) }
    }

    fn states(&self) -> Vec<StateKind> {
        self.source.states()
    }

    fn describe(&self, at: At, notes: &mut Vec<String>) {
        self.source.describe(at, notes);
    }
}
