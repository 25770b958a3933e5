//! Masks over what a growth has added to a model: from 0, where the model is what it was, to 1, where
//! it is the larger one, in so many steps (Yao et al. 2023, MSG, arXiv:2305.02869, section 3).
//!
//! Added blocks have a factor on both of their branches; added heads and neurons one on their result
//! before the projection that reads it. The residual stream has none: it does not grow under masks.

use tch::Tensor;

use super::compute::Compute;
use super::config::DecoderSpec;

/// What was added, and when its mask rises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ramp {
    /// Steps done when the mask is 0.
    pub from_step: u64,
    /// Steps in which it rises to 1; above 0.
    pub steps: u64,
    /// The added blocks.
    pub blocks: Vec<usize>,
    /// Heads before the added ones, in the other blocks.
    pub heads: usize,
    /// Neurons before the added ones, in the other blocks.
    pub neurons: usize,
}

impl Ramp {
    /// The mask in the step after `step` steps, from 0 to 1.
    pub fn weight(&self, step: u64) -> f64 {
        (step.saturating_sub(self.from_step) as f64 / self.steps as f64).min(1.0)
    }

    /// The masks of that step; none where all are 1.
    pub fn masks(&self, compute: &Compute, spec: &DecoderSpec, step: u64) -> Option<Masks> {
        let weight = self.weight(step);
        let mask = |old: usize, new: usize| {
            let (old, new) = (old as i64, new as i64);
            let options = (compute.kind, compute.device);
            let mask = Tensor::ones([new], options);
            let _ = mask.narrow(0, old, new - old).fill_(weight);
            (old < new).then_some(mask)
        };
        (weight < 1.0).then(|| Masks {
            weight,
            blocks: self.blocks.clone(),
            heads: mask(self.heads * spec.head_dim, spec.num_heads * spec.head_dim),
            neurons: mask(self.neurons, spec.intermediate_size),
        })
    }
}

/// The masks of one step.
#[derive(Debug)]
pub struct Masks {
    weight: f64,
    blocks: Vec<usize>,
    /// `[N * H]`, compute dtype.
    heads: Option<Tensor>,
    /// `[F]`, compute dtype.
    neurons: Option<Tensor>,
}

impl Masks {
    /// That of a block.
    pub fn of(&self, layer: usize) -> Mask<'_> {
        if self.blocks.contains(&layer) {
            return Mask { branch: self.weight, ..Mask::NONE };
        }
        Mask { branch: 1.0, heads: self.heads.as_ref(), neurons: self.neurons.as_ref() }
    }
}

/// What is masked in one block.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The factor on what its branches add to the residual stream.
    pub branch: f64,
    /// `[N * H]`, on attention's result.
    pub heads: Option<&'a Tensor>,
    /// `[F]`, on the hidden layer.
    pub neurons: Option<&'a Tensor>,
}

impl Mask<'_> {
    /// Nothing.
    pub const NONE: Self = Self { branch: 1.0, heads: None, neurons: None };
}

/// `x` under a mask of its last dim: a result, or the gradient of one.
pub(super) fn masked(x: &Tensor, mask: Option<&Tensor>) -> Tensor {
    mask.map_or_else(|| x.shallow_clone(), |mask| x * mask)
}
