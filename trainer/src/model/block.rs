//! One pre-norm transformer block, forward and backward, and what is kept in between.
//!
//! `x2 = x + W_o attention(norm(x))`, `y = x2 + W_down act(W_up norm(x2))`.
//! B batch, S sequence, R = B * S rows, D hidden, F mlp.

use tch::Tensor;

use super::activation;
use super::attention::{Attention, AttentionOutput};
use super::compute::Compute;
use super::config::Mlp;
use super::norm::{Norm, NormStatistics};
use super::ramp::{Mask, masked};
use super::rotary::{Rotary, Turn};
use super::units::Projection;
use super::views::{Grads, Weights};

/// What a block keeps between its forward and its backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// Everything the backward reads.
    None,
    /// The results of matrix products and attention; norms and activations are computed again.
    Elementwise,
    /// Only the block's input; the whole forward is computed again.
    Block,
}

/// One block of a model: sizes and places of its parameters, no tensors of its own.
#[derive(Debug)]
pub struct Block {
    /// The norm before attention.
    pub norm_attention: Norm,
    /// x to q, k, v.
    pub qkv: Projection,
    /// Attention to the residual stream.
    pub output: Projection,
    /// The norm before the feed-forward part.
    pub norm_mlp: Norm,
    /// x to the hidden layer.
    pub up: Projection,
    /// Hidden layer to the residual stream.
    pub down: Projection,
    /// The activation between.
    pub mlp: Mlp,
    /// The factor on what attention and the feed-forward part add to the residual stream.
    pub residual: f64,
}

/// What one micro-batch brings to every block.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Device, dtypes and threads.
    pub compute: &'a Compute,
    /// Attention's shape for this micro-batch.
    pub attention: Attention<'a>,
    /// The rotary tables, in families that rotate.
    pub rotary: Option<&'a Rotary>,
    /// What is masked in the block at hand.
    pub mask: Mask<'a>,
}

/// Kept from a block's forward: its input, and the inner values unless the whole is recomputed.
#[derive(Debug)]
pub struct Saved {
    x: Tensor,
    inner: Option<Inner>,
}

impl Saved {
    /// Bytes that wait for the backward.
    pub fn bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        let Some(inner) = &self.inner else { return bytes(&self.x) };
        let whole = [&self.x, &inner.qkv, &inner.attention.out, &inner.x2, &inner.up];
        let kept = [&inner.h_attention, &inner.h_mlp, &inner.act];
        whole.into_iter().chain(kept.into_iter().flatten()).map(bytes).sum()
    }
}

/// The values inside a block that its backward reads.
#[derive(Debug)]
struct Inner {
    /// `norm(x)` `[R, D]`; dropped under [`Recompute::Elementwise`].
    h_attention: Option<Tensor>,
    statistics_attention: NormStatistics,
    /// Rotated q, k and v `[R, (N + 2 K) H]`.
    qkv: Tensor,
    attention: AttentionOutput,
    /// The residual stream between the two halves `[R, D]`.
    x2: Tensor,
    /// `norm(x2)` `[R, D]`; dropped under [`Recompute::Elementwise`].
    h_mlp: Option<Tensor>,
    statistics_mlp: NormStatistics,
    /// The hidden layer before its activation `[R, 2 F]` or `[R, F]`.
    up: Tensor,
    /// The hidden layer after it `[R, F]`; dropped under [`Recompute::Elementwise`].
    act: Option<Tensor>,
}

impl Block {
    /// The block's output and what its backward will need.
    ///
    /// # Shapes
    /// - `x`: `[R, D]`, compute dtype; returns `[R, D]`
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        weights: &Weights<'_>,
        x: Tensor,
        recompute: Recompute,
    ) -> (Tensor, Saved) {
        let mut inner = self.inner(pass, weights, &x);
        let act = inner.act.as_ref().expect("just computed");
        let y = self.add(&self.down, (pass, weights), &masked(act, pass.mask.neurons), &inner.x2);
        if recompute == Recompute::Elementwise {
            (inner.h_attention, inner.h_mlp, inner.act) = (None, None, None);
        }
        let inner = (recompute != Recompute::Block).then_some(inner);
        (y, Saved { x, inner })
    }

    /// Adds the gradients of the block's parameters to `grads`; returns the gradient of its input.
    ///
    /// # Shapes
    /// - `dy`: `[R, D]`; returns `[R, D]`
    pub fn backward(
        &self,
        pass: &Pass<'_>,
        (weights, grads): (&Weights<'_>, &Grads<'_>),
        saved: Saved,
        dy: Tensor,
    ) -> Tensor {
        let Saved { x, inner } = saved;
        let mut inner = inner.unwrap_or_else(|| self.inner(pass, weights, &x));
        let dx2 = self.backward_mlp(pass, (weights, grads), &mut inner, &dy);
        drop(dy);
        self.backward_attention(pass, (weights, grads), (&x, inner), &dx2)
    }

    /// `stream + residual * mask * projection(x)`.
    fn add(
        &self,
        projection: &Projection,
        (pass, weights): (&Pass<'_>, &Weights<'_>),
        x: &Tensor,
        stream: &Tensor,
    ) -> Tensor {
        let factor = self.residual * pass.mask.branch;
        if factor == 1.0 {
            return projection.forward_add(pass.compute, weights, x, stream);
        }
        stream + projection.forward(pass.compute, weights, x) * factor
    }

    /// A gradient of the residual stream as what a layer added sees it.
    fn scaled(&self, pass: &Pass<'_>, gradient: &Tensor) -> Tensor {
        let factor = self.residual * pass.mask.branch;
        if factor == 1.0 { gradient.shallow_clone() } else { gradient * factor }
    }

    fn backward_mlp(
        &self,
        pass: &Pass<'_>,
        (weights, grads): (&Weights<'_>, &Grads<'_>),
        inner: &mut Inner,
        dy: &Tensor,
    ) -> Tensor {
        let (compute, params) = (pass.compute, (weights, grads));
        let act = inner.act.take();
        let act = act.unwrap_or_else(|| activation::forward(compute, self.mlp, &inner.up));
        let act = masked(&act, pass.mask.neurons);
        let d_act = self.down.backward(compute, params, &act, &self.scaled(pass, dy));
        let d_act = masked(&d_act, pass.mask.neurons);
        drop(act);
        let d_up = activation::backward(compute, self.mlp, &inner.up, &d_act);
        drop(d_act);
        let h = inner.h_mlp.take();
        let h = h.unwrap_or_else(|| self.norm_mlp.forward(compute, weights, &inner.x2).0);
        let dh = self.up.backward(compute, params, &h, &d_up);
        let input = (&inner.x2, &inner.statistics_mlp);
        self.norm_mlp.backward(compute, params, input, &dh, Some(dy))
    }

    fn backward_attention(
        &self,
        pass: &Pass<'_>,
        params: (&Weights<'_>, &Grads<'_>),
        (x, inner): (&Tensor, Inner),
        dx2: &Tensor,
    ) -> Tensor {
        let compute = pass.compute;
        let d_sum = self.scaled(pass, dx2);
        let out = masked(&inner.attention.out, pass.mask.heads);
        let d_out = self.output.backward(compute, params, &out, &d_sum);
        let d_out = masked(&d_out, pass.mask.heads);
        drop(d_sum);
        let mut d_qkv = pass.attention.backward(compute, &inner.qkv, &inner.attention, &d_out);
        drop(d_out);
        if let Some(rotary) = pass.rotary {
            rotary.turn(compute, &mut d_qkv, &pass.attention, Turn::Backward);
        }
        let h = inner.h_attention;
        let h = h.unwrap_or_else(|| self.norm_attention.forward(compute, params.0, x).0);
        let dh = self.qkv.backward(compute, params, &h, &d_qkv);
        let input = (x, &inner.statistics_attention);
        self.norm_attention.backward(compute, params, input, &dh, Some(dx2))
    }

    fn inner(&self, pass: &Pass<'_>, weights: &Weights<'_>, x: &Tensor) -> Inner {
        let compute = pass.compute;
        let (h_attention, statistics_attention) = self.norm_attention.forward(compute, weights, x);
        let mut qkv = self.qkv.forward(compute, weights, &h_attention);
        if let Some(rotary) = pass.rotary {
            rotary.turn(compute, &mut qkv, &pass.attention, Turn::Forward);
        }
        let attention = pass.attention.forward(compute, &qkv);
        let out = masked(&attention.out, pass.mask.heads);
        let x2 = self.add(&self.output, (pass, weights), &out, x);
        let (h_mlp, statistics_mlp) = self.norm_mlp.forward(compute, weights, &x2);
        let up = self.up.forward(compute, weights, &h_mlp);
        let act = activation::forward(compute, self.mlp, &up);
        Inner {
            h_attention: Some(h_attention),
            statistics_attention,
            qkv,
            attention,
            x2,
            h_mlp: Some(h_mlp),
            statistics_mlp,
            up,
            act: Some(act),
        }
    }
}
