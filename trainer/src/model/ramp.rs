//! Masks over what a growth has added to a model: from 0, where the model is what it was, to 1, where
//! it is the larger one, in so many steps (Yao et al. 2023, MSG, arXiv:2305.02869, section 3).
//!
//! Added blocks have a factor on both of their branches; added heads and neurons one on their result
//! before the projection that reads it. Added channels of the residual stream have one on all that is
//! written into them, and norms over the stream divide by the sum of the masks, not by their number.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::compute::Compute;
use super::config::DecoderSpec;

/// What was added, and when its mask rises; a plan finds it from a stage and its models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Channels of the residual stream before the added ones.
    pub channels: usize,
}

impl Ramp {
    /// The mask in the step after `step` steps, from 0 to 1.
    pub fn weight(&self, step: u64) -> f64 {
        (step.saturating_sub(self.from_step) as f64 / self.steps as f64).min(1.0)
    }

    /// The masks of that step; none where all are 1.
    pub fn masks(&self, compute: &Compute, spec: &DecoderSpec, step: u64) -> Option<Masks> {
        let weight = self.weight(step);
        let layers = |old: usize, new: usize| {
            mask(old, new, weight).map(|mask| mask.to_kind(compute.kind).to_device(compute.device))
        };
        (weight < 1.0).then(|| Masks {
            weight,
            blocks: self.blocks.clone(),
            heads: layers(self.heads * spec.head_dim, spec.num_heads * spec.head_dim),
            neurons: layers(self.neurons, spec.intermediate_size),
            stream: layers(self.channels, spec.hidden_size)
                .map(|mask| Stream { mask, share: self.share(spec.hidden_size, weight) }),
        })
    }

    /// The sum of the masks of `hidden_size` channels as a part of their number.
    pub(super) fn share(&self, hidden_size: usize, weight: f64) -> f64 {
        let (old, new) = (self.channels as f64, hidden_size as f64);
        (old + weight * (new - old)) / new
    }
}

/// `[new]` f64: 1 for the `old` first, `weight` for those that were added; none if none were.
pub(super) fn mask(old: usize, new: usize, weight: f64) -> Option<Tensor> {
    let (old, new) = (old as i64, new as i64);
    let mask = Tensor::ones([new], (Kind::Double, Device::Cpu));
    let _ = mask.narrow(0, old, new - old).fill_(weight);
    (old < new).then_some(mask)
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
    /// Over the residual stream.
    pub stream: Option<Stream>,
}

/// The masks of the channels of the residual stream.
#[derive(Debug)]
pub struct Stream {
    /// `[D]`, compute dtype.
    pub mask: Tensor,
    /// Their sum as a part of their number.
    pub share: f64,
}

impl Masks {
    /// That of a block.
    pub fn of(&self, layer: usize) -> Mask<'_> {
        let stream = self.stream.as_ref();
        if self.blocks.contains(&layer) {
            return Mask { branch: self.weight, stream, ..Mask::NONE };
        }
        Mask { branch: 1.0, heads: self.heads.as_ref(), neurons: self.neurons.as_ref(), stream }
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
    /// On what its branches add to the residual stream, and in its norms.
    pub stream: Option<&'a Stream>,
}

impl Mask<'_> {
    /// Nothing.
    pub const NONE: Self = Self { branch: 1.0, heads: None, neurons: None, stream: None };

    /// The part of the stream's channels that its norms count.
    pub fn share(&self) -> f64 {
        self.stream.map_or(1.0, |stream| stream.share)
    }
}

/// `x` under a mask of its last dim: a result, or the gradient of one.
pub fn masked(x: &Tensor, mask: Option<&Tensor>) -> Tensor {
    mask.map_or_else(|| x.shallow_clone(), |mask| x * mask)
}
