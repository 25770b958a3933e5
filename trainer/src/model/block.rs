//! One transformer block, forward and backward, and what is kept in between.
//!
//! Pre-norm: `x2 = x + W_o attention(norm(x))`, `y = x2 + W_down act(W_up norm(x2))`; other forms of
//! the residual stream are in [`super::residual`].
//! B batch, S sequence, R = B * S rows, D hidden, F mlp.

use tch::Tensor;

use super::activation;
use super::attention::{Attention, AttentionOutput};
use super::branch::{Entry, Join, Joined, put_scalar};
use super::compute::Compute;
use super::config::Mlp;
use super::norm::NormStatistics;
use super::ramp::{Mask, masked};
use super::rotary::Rotary;
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

/// One branch of a block: how it begins, what stands before its last map, and how it ends.
#[derive(Clone, Copy, Debug)]
pub struct Branch {
    /// Before the first map.
    pub before: Entry,
    /// Before the last map.
    pub inside: Entry,
    /// The last map's way to the residual stream.
    pub join: Join,
}

/// One block of a model: sizes and places of its parameters, no tensors of its own.
#[derive(Debug)]
pub struct Block {
    /// The branch with attention.
    pub attention: Branch,
    /// x to q, k, v.
    pub qkv: Projection,
    /// Attention to the residual stream.
    pub output: Projection,
    /// The feed-forward branch.
    pub mlp: Branch,
    /// x to the hidden layer.
    pub up: Projection,
    /// Hidden layer to the residual stream.
    pub down: Projection,
    /// Before the activation.
    pub activated: Entry,
    /// The activation between.
    pub activation: Mlp,
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
        let entries = [&inner.h_attention, &inner.o_attention, &inner.h_mlp, &inner.o_mlp];
        let kept = entries.into_iter().map(|entry| &entry.value).chain([&inner.act]).flatten();
        let joined = inner.joined_attention.tensors().chain(inner.joined_mlp.tensors());
        whole.into_iter().chain(kept).chain(joined).map(bytes).sum()
    }
}

/// What is kept of an [`Entry`].
#[derive(Debug)]
struct Entered {
    /// Its result; none where it is its input, and dropped under [`Recompute::Elementwise`].
    value: Option<Tensor>,
    statistics: Option<NormStatistics>,
}

/// The values inside a block that its backward reads.
#[derive(Debug)]
struct Inner {
    /// What q, k and v are of `[R, D]`.
    h_attention: Entered,
    /// Rotated q, k and v `[R, (N + 2 K) H]`.
    qkv: Tensor,
    attention: AttentionOutput,
    /// What the output map reads `[R, N H]`.
    o_attention: Entered,
    joined_attention: Joined,
    /// The residual stream between the two halves `[R, D]`.
    x2: Tensor,
    /// What the hidden layer is of `[R, D]`.
    h_mlp: Entered,
    /// The hidden layer before its activation `[R, 2 F]` or `[R, F]`.
    up: Tensor,
    /// The hidden layer after it `[R, F]`; dropped under [`Recompute::Elementwise`].
    act: Option<Tensor>,
    /// What the down map reads `[R, F]`.
    o_mlp: Entered,
    joined_mlp: Joined,
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
        let (mut inner, o) = self.inner(pass, weights, &x);
        let params = (pass.compute, weights);
        let join = self.mlp.join.under(&pass.mask);
        let (y, joined) = join.forward(params, &self.down, &o, &inner.x2);
        inner.joined_mlp = joined;
        if recompute == Recompute::Elementwise {
            inner.act = None;
            for entered in inner.entered() {
                entered.value = None;
            }
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
        params: (&Weights<'_>, &Grads<'_>),
        saved: Saved,
        dy: Tensor,
    ) -> Tensor {
        let Saved { x, inner } = saved;
        let mut inner = inner.unwrap_or_else(|| self.whole_inner(pass, params.0, &x));
        let (dx2, gain_mlp) = self.backward_mlp(pass, params, &mut inner, &dy);
        drop(dy);
        let (dx, gain_attention) = self.backward_attention(pass, params, (&x, inner), &dx2);
        self.put_gains(pass.compute, params.1, [gain_attention, gain_mlp]);
        dx
    }

    /// The gradients of the learned factors, which may be one.
    fn put_gains(&self, compute: &Compute, grads: &Grads<'_>, gains: [Option<Tensor>; 2]) {
        let [Some(attention), Some(mlp)] = gains else { return };
        match (self.attention.join.gain, self.mlp.join.gain) {
            (Some(first), Some(second)) if first == second => {
                put_scalar(compute, grads, first, &(attention + mlp));
            }
            (Some(first), Some(second)) => {
                put_scalar(compute, grads, first, &attention);
                put_scalar(compute, grads, second, &mlp);
            }
            _ => unreachable!("gradients come from learned factors"),
        }
    }

    fn backward_mlp(
        &self,
        pass: &Pass<'_>,
        params: (&Weights<'_>, &Grads<'_>),
        inner: &mut Inner,
        dy: &Tensor,
    ) -> (Tensor, Option<Tensor>) {
        let compute = pass.compute;
        let join = self.mlp.join.under(&pass.mask);
        let parted = join.backward(compute, params, &inner.joined_mlp, dy);
        let (up, _) = self.activated.forward(compute, params.0, &inner.up);
        let act = inner.act.take();
        let act = act.unwrap_or_else(|| activation::forward(compute, self.activation, &up));
        let act = masked(&act, pass.mask.neurons);
        let inside = &self.mlp.inside;
        let o = inner.o_mlp.take((compute, params.0), inside, &act);
        let d_o = self.down.backward(compute, params, &o, &parted.branch);
        drop(o);
        let statistics = inner.o_mlp.statistics.as_ref();
        let d_act = inside.backward(compute, params, (&act, statistics), &d_o, None);
        drop((act, d_o));
        let d_act = masked(&d_act, pass.mask.neurons);
        // Nothing reads `inner.up` after this: the entry before the activation has no norm.
        let d_up = activation::backward(compute, self.activation, up, &d_act);
        drop(d_act);
        let d_up = self.activated.backward(compute, params, (&inner.up, None), &d_up, None);
        let before = self.mlp.before.of_share(pass.mask.share());
        let h = inner.h_mlp.take((compute, params.0), &before, &inner.x2);
        let dh = self.up.backward(compute, params, &h, &d_up);
        let input = (&inner.x2, inner.h_mlp.statistics.as_ref());
        let dx2 = before.backward(compute, params, input, &dh, Some(&parted.stream));
        (dx2, parted.gain)
    }

    fn backward_attention(
        &self,
        pass: &Pass<'_>,
        params: (&Weights<'_>, &Grads<'_>),
        (x, mut inner): (&Tensor, Inner),
        dx2: &Tensor,
    ) -> (Tensor, Option<Tensor>) {
        let compute = pass.compute;
        let join = self.attention.join.under(&pass.mask);
        let parted = join.backward(compute, params, &inner.joined_attention, dx2);
        let inside = &self.attention.inside;
        let out = masked(&inner.attention.out, pass.mask.heads);
        let o = inner.o_attention.take((compute, params.0), inside, &out);
        let d_o = self.output.backward(compute, params, &o, &parted.branch);
        drop(o);
        let statistics = inner.o_attention.statistics.as_ref();
        let d_out = inside.backward(compute, params, (&out, statistics), &d_o, None);
        drop((out, d_o));
        let d_out = masked(&d_out, pass.mask.heads);
        let turned = (compute, pass.rotary);
        let d_qkv = pass.attention.backward(turned, &inner.qkv, &inner.attention, &d_out);
        drop(d_out);
        let before = self.attention.before.of_share(pass.mask.share());
        let h = inner.h_attention.take((compute, params.0), &before, x);
        let dh = self.qkv.backward(compute, params, &h, &d_qkv);
        let input = (x, inner.h_attention.statistics.as_ref());
        let dx = before.backward(compute, params, input, &dh, Some(&parted.stream));
        (dx, parted.gain)
    }

    /// The inner values with those that come with the block's output, where a backward reads them.
    fn whole_inner(&self, pass: &Pass<'_>, weights: &Weights<'_>, x: &Tensor) -> Inner {
        let (mut inner, o) = self.inner(pass, weights, x);
        if self.mlp.join.keeps() {
            let params = (pass.compute, weights);
            let join = self.mlp.join.under(&pass.mask);
            inner.joined_mlp = join.forward(params, &self.down, &o, &inner.x2).1;
        }
        inner
    }

    /// The inner values up to what the last map reads, which is returned too.
    fn inner(&self, pass: &Pass<'_>, weights: &Weights<'_>, x: &Tensor) -> (Inner, Tensor) {
        let compute = pass.compute;
        let params = (compute, weights);
        let share = pass.mask.share();
        let (h, h_attention) = Entered::new(params, &self.attention.before.of_share(share), x);
        let qkv = match pass.rotary {
            Some(rotary) => rotary.project(params, &self.qkv, &h, &pass.attention),
            None => self.qkv.forward(compute, weights, &h),
        };
        drop(h);
        let attention = pass.attention.forward(compute, &qkv);
        let out = masked(&attention.out, pass.mask.heads);
        let (o, o_attention) = Entered::new(params, &self.attention.inside, &out);
        let join = self.attention.join.under(&pass.mask);
        let (x2, joined_attention) = join.forward(params, &self.output, &o, x);
        drop((out, o));
        let (h, h_mlp) = Entered::new(params, &self.mlp.before.of_share(share), &x2);
        let up = self.up.forward(compute, weights, &h);
        drop(h);
        let (biased, _) = self.activated.forward(compute, weights, &up);
        let act = activation::forward(compute, self.activation, &biased);
        let out = masked(&act, pass.mask.neurons);
        let (o, o_mlp) = Entered::new(params, &self.mlp.inside, &out);
        let inner = Inner {
            h_attention,
            qkv,
            attention,
            o_attention,
            joined_attention,
            x2,
            h_mlp,
            up,
            act: Some(act),
            o_mlp,
            joined_mlp: Joined::default(),
        };
        (inner, o)
    }
}

impl Inner {
    fn entered(&mut self) -> [&mut Entered; 4] {
        [&mut self.h_attention, &mut self.o_attention, &mut self.h_mlp, &mut self.o_mlp]
    }
}

impl Entered {
    fn new(
        (compute, weights): (&Compute, &Weights<'_>),
        entry: &Entry,
        x: &Tensor,
    ) -> (Tensor, Self) {
        let (h, statistics) = entry.forward(compute, weights, x);
        let value = (!entry.is_identity()).then(|| h.shallow_clone());
        (h, Self { value, statistics })
    }

    /// The result, computed again where it was not kept.
    fn take(
        &mut self,
        (compute, weights): (&Compute, &Weights<'_>),
        entry: &Entry,
        x: &Tensor,
    ) -> Tensor {
        let kept = self.value.take();
        kept.unwrap_or_else(|| entry.forward(compute, weights, x).0)
    }
}
