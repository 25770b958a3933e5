//! Knowledge inheritance (Qin et al. 2022, arXiv:2105.13880): a smaller frozen model looks at the same
//! micro-batches, and for the first steps the loss is partly the divergence from what it predicts.
//!
//! Every rank holds the teacher whole and runs it forward on its own micro-batches, so nothing about
//! it depends on ranks or stages.

use std::f64::consts::PI;

use grove_parallel::LocalCollective;
use tch::{Kind, Tensor};

use crate::model::compute::Compute;
use crate::model::decoder::Decoder;
use crate::model::lesson::{Lesson, Mixture};
use crate::model::views::Weights;
use crate::pass::{Layers, Tokens, Traffic, hidden};
use crate::sharding::{Placement, Sharding};
use crate::state::RunState;

/// How the teacher's weight falls to 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fading {
    /// In a straight line, as in the paper.
    Linear,
    /// As half a cosine.
    Cosine,
    /// Not until the last step, then at once.
    Constant,
}

/// A teacher and how much it counts at which step.
#[derive(Debug)]
pub struct Distillation {
    /// The weight at the first step, above 0 and at most 1.
    pub weight: f64,
    /// Steps after which it is 0.
    pub steps: u64,
    /// How it gets there.
    pub fading: Fading,
    /// The divisor of both models' logits.
    pub temperature: f64,
    /// The teacher, as long as it is needed.
    pub teacher: Option<Teacher>,
}

impl Distillation {
    /// How much the teacher counts in the step after `step` steps; none if it does not.
    pub fn mixture(&self, step: u64) -> Option<Mixture> {
        let place = step as f64 / self.steps as f64;
        let part = match self.fading {
            _ if step >= self.steps => return None,
            Fading::Linear => 1.0 - place,
            Fading::Cosine => 0.5 * (1.0 + (PI * place).cos()),
            Fading::Constant => 1.0,
        };
        let weight = self.weight * part;
        (weight > 0.0).then_some(Mixture { weight, temperature: self.temperature })
    }

    /// Bytes of the teacher's weights; 0 where there is none.
    pub fn bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        let units = self.teacher.iter().flat_map(|teacher| &teacher.state.units);
        units.map(|unit| bytes(&unit.working)).sum()
    }

    /// What the teacher says of a micro-batch of the step after `step` steps; none if it does not
    /// count then. It must have been loaded.
    ///
    /// # Errors
    /// Never: nothing is exchanged.
    pub fn lesson(
        &self,
        compute: &Compute,
        tokens: &Tokens,
        step: u64,
    ) -> Result<Option<Lesson>, grove_parallel::Error> {
        let Some(mixture) = self.mixture(step) else { return Ok(None) };
        let teacher = self.teacher.as_ref().expect("a run loads its teacher before such a step");
        Ok(Some(teacher.lesson(compute, tokens, mixture)?))
    }
}

/// A model that is not trained: layers and working copies, whole on every rank.
#[derive(Debug)]
pub struct Teacher {
    /// The layers.
    pub model: Decoder,
    /// Their working copies.
    pub state: RunState,
    /// FLOPs of its forward, a token.
    pub flops_per_token: u64,
}

impl Teacher {
    /// What it says of a micro-batch.
    ///
    /// # Errors
    /// Never: nothing is exchanged.
    fn lesson(
        &self,
        compute: &Compute,
        tokens: &Tokens,
        mixture: Mixture,
    ) -> Result<Lesson, grove_parallel::Error> {
        let (alone, units) = (LocalCollective::new(), &self.state.units[..]);
        let mut traffic = Traffic::new(Sharding::new(Placement::alone(), &alone)?, units, 0);
        let layers = Layers { model: &self.model, compute, units };
        let inputs = (&tokens.inputs, tokens.segments.as_deref());
        let hidden = hidden(layers, inputs, &mut traffic)?;
        let unit = &units[self.model.output_unit()];
        let weights = Weights { layout: &unit.layout, flat: &unit.working };
        let output = weights.get(self.model.head.output.weights.start);
        let divergence = Tensor::zeros([], (Kind::Double, compute.device));
        Ok(Lesson { hidden, output, mixture, divergence })
    }
}
