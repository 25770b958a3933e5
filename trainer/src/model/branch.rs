//! How a branch of the residual stream begins and ends, forward and backward: the parts of a block
//! that differ between residual forms ([`super::residual`]).

use tch::Tensor;

use super::compute::Compute;
use super::norm::{Norm, NormStatistics};
use super::ramp::{Mask, masked};
use super::units::Projection;
use super::views::{Grads, Weights};

/// What stands before a layer: a norm, a learned number that is added, both, or nothing.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The norm.
    pub norm: Option<Norm>,
    /// Index of the number in the unit.
    pub bias: Option<usize>,
}

impl Entry {
    /// Whether it does nothing.
    pub fn is_identity(&self) -> bool {
        self.norm.is_none() && self.bias.is_none()
    }

    /// The same where the norm counts `share` of the elements.
    #[must_use]
    pub fn of_share(&self, share: f64) -> Self {
        Self { norm: self.norm.map(|norm| norm.of_share(share)), ..*self }
    }

    /// `norm(x) + bias`, and what the norm's backward needs.
    ///
    /// # Shapes
    /// - `x`: `[R, D]` in the compute dtype; returns `[R, D]`, `x` itself if there is nothing to do
    pub fn forward(
        &self,
        compute: &Compute,
        weights: &Weights<'_>,
        x: &Tensor,
    ) -> (Tensor, Option<NormStatistics>) {
        let (h, statistics) = match &self.norm {
            Some(norm) => {
                let (h, statistics) = norm.forward(compute, weights, x);
                (h, Some(statistics))
            }
            None => (x.shallow_clone(), None),
        };
        match self.bias {
            Some(bias) => (h + weights.get(bias), statistics),
            None => (h, statistics),
        }
    }

    /// Adds the gradients of norm and number to `grads`; returns `past + dx`, where `past` is the
    /// gradient that reaches `x` on another way.
    ///
    /// # Shapes
    /// - `x`, `dy`, `past`: `[R, D]`; returns `[R, D]`
    pub fn backward(
        &self,
        compute: &Compute,
        params: (&Weights<'_>, &Grads<'_>),
        (x, statistics): (&Tensor, Option<&NormStatistics>),
        dy: &Tensor,
        past: Option<&Tensor>,
    ) -> Tensor {
        if let Some(bias) = self.bias {
            put_scalar(compute, params.1, bias, &dy.sum(compute.accumulation()));
        }
        let Some(norm) = &self.norm else {
            return past.map_or_else(|| dy.shallow_clone(), |past| dy + past);
        };
        let statistics = statistics.expect("the forward of a norm returns its statistics");
        norm.backward(compute, params, (x, statistics), dy, past)
    }
}

/// How a branch joins the stream: `norm(skip x + gain factor W o)`, with `W` the branch's last map.
#[derive(Clone, Copy, Debug)]
pub struct Join {
    /// The constant factor on the stream.
    pub skip: f64,
    /// The constant factor on the branch.
    pub factor: f64,
    /// Index of the learned factor on the branch in the unit.
    pub gain: Option<usize>,
    /// The norm of the sum.
    pub norm: Option<Norm>,
}

/// What the backward of a [`Join`] reads.
#[derive(Debug, Default)]
pub struct Joined {
    /// `W o` `[R, D]`, where a learned factor is on it.
    branch: Option<Tensor>,
    /// The sum `[R, D]` with its statistics, where it is normed.
    sum: Option<(Tensor, NormStatistics)>,
}

/// The gradients that a [`Join`] passes on.
#[derive(Debug)]
pub struct Parted {
    /// Of the stream, past the branch `[R, D]`.
    pub stream: Tensor,
    /// Of the branch's last map's result `[R, D]`.
    pub branch: Tensor,
    /// Of the learned factor, a scalar in the accumulation dtype; its parameter may be shared, so
    /// that the caller adds the gradients of its uses and puts them with [`put_scalar`].
    pub gain: Option<Tensor>,
}

impl Joined {
    /// The tensors that wait for the backward.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.branch.iter().chain(self.sum.iter().map(|(sum, _)| sum))
    }
}

impl Join {
    /// Whether the backward reads something that only the forward computes.
    pub fn keeps(&self) -> bool {
        self.gain.is_some() || self.norm.is_some()
    }

    /// The same with the masks on the branch.
    pub fn under<'a>(&self, mask: &Mask<'a>) -> MaskedJoin<'a> {
        let join = Self { factor: self.factor * mask.branch, ..*self };
        MaskedJoin { join, channels: mask.stream.map(|stream| &stream.mask) }
    }
}

/// A [`Join`] with masks on what the branch adds.
#[derive(Clone, Copy, Debug)]
pub struct MaskedJoin<'a> {
    /// With the block's factor.
    join: Join,
    /// `[D]`, on the branch's result.
    channels: Option<&'a Tensor>,
}

impl MaskedJoin<'_> {
    /// The stream behind the branch.
    ///
    /// # Shapes
    /// - `o`: `[R, in]`, what the last map `projection` reads; `x`: `[R, D]`; returns `[R, D]`
    pub fn forward(
        &self,
        (compute, weights): (&Compute, &Weights<'_>),
        projection: &Projection,
        o: &Tensor,
        x: &Tensor,
    ) -> (Tensor, Joined) {
        let mut joined = Joined::default();
        let sum = self.sum((compute, weights), projection, (o, x), &mut joined.branch);
        let Some(norm) = &self.join.norm else { return (sum, joined) };
        let (y, statistics) = norm.forward(compute, weights, &sum);
        joined.sum = Some((sum, statistics));
        (y, joined)
    }

    /// `skip x + gain factor W o`; the branch goes to `kept` where a learned factor is on it.
    fn sum(
        &self,
        (compute, weights): (&Compute, &Weights<'_>),
        projection: &Projection,
        (o, x): (&Tensor, &Tensor),
        kept: &mut Option<Tensor>,
    ) -> Tensor {
        if self.join.gain.is_none() && self.join.skip == 1.0 {
            if self.join.factor == 1.0 && self.channels.is_none() {
                return projection.forward_add(compute, weights, o, x);
            }
            let branch = masked(&projection.forward(compute, weights, o), self.channels);
            return x + branch * self.join.factor;
        }
        let branch = masked(&projection.forward(compute, weights, o), self.channels);
        // Wide, so that the sum is rounded once.
        let kind = compute.accumulation();
        let stream = x.to_kind(kind) * self.join.skip;
        let mut factor = Tensor::full([], self.join.factor, (kind, compute.device));
        if let Some(gain) = self.join.gain {
            factor *= weights.get(gain).to_kind(kind).squeeze();
        }
        let sum = (stream + branch.to_kind(kind) * factor).to_kind(compute.kind);
        if self.join.gain.is_some() {
            *kept = Some(branch);
        }
        sum
    }

    /// Takes the gradient of the stream behind the branch apart; adds the norm's own to `grads`.
    ///
    /// # Shapes
    /// - `dy`: `[R, D]`
    pub fn backward(
        &self,
        compute: &Compute,
        params: (&Weights<'_>, &Grads<'_>),
        joined: &Joined,
        dy: &Tensor,
    ) -> Parted {
        let ds = match &self.join.norm {
            Some(norm) => {
                let (sum, statistics) = joined.sum.as_ref().expect("kept where it is normed");
                norm.backward(compute, params, (sum, statistics), dy, None)
            }
            None => dy.shallow_clone(),
        };
        let scaled = |factor: f64| if factor == 1.0 { ds.shallow_clone() } else { &ds * factor };
        let stream = scaled(self.join.skip);
        let Some(gain) = self.join.gain else {
            let branch = masked(&scaled(self.join.factor), self.channels);
            return Parted { stream, branch, gain: None };
        };
        let branch = joined.branch.as_ref().expect("kept where a learned factor is on it");
        let kind = compute.accumulation();
        let wide = ds.to_kind(kind) * self.join.factor;
        let d_gain = (&wide * branch.to_kind(kind)).sum(kind);
        let d_branch = (wide * params.0.get(gain).to_kind(kind)).to_kind(compute.kind);
        Parted { stream, branch: masked(&d_branch, self.channels), gain: Some(d_gain) }
    }
}

/// Puts the gradient of a parameter of one number.
pub fn put_scalar(compute: &Compute, grads: &Grads<'_>, index: usize, value: &Tensor) {
    let mut sum = grads.open(compute, index);
    let _ = sum.g_add_(&value.to_kind(compute.accumulation()).view([1]));
    grads.close(compute, index, &sum);
}
