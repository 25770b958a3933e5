//! Causal grouped-query attention, `softmax(scale q k^T + mask) v`, scale `1 / sqrt(H)` (Vaswani et al. 2017,
//! arXiv:1706.03762, eq. 1; grouped: Ainslie et al. 2023, arXiv:2305.13245), forward and backward.
//!
//! Three ways to the same formula: this crate's CPU kernel (bf16, f32), libtorch's fused kernels
//! (CUDA), and plain products (f64, and whatever else), which is also the kernel's reference.
//!
//! B batch, S sequence, N heads, K kv heads, H head dim; N = K * G.

use tch::{Device, Kind, Tensor};

use super::compute::{Compute, per_element};
use super::config::DecoderSpec;
use super::rotary::{Rotary, Turn};
use super::segments::Segments;
use crate::kernel::{attention as kernel, view};

/// The shape of attention over one micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Sequences in the micro-batch.
    pub batch_size: i64,
    /// Positions in a sequence.
    pub sequence_length: i64,
    /// Query heads.
    pub num_heads: i64,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: i64,
    /// Elements of a head.
    pub head_dim: i64,
    /// The factor on scores: `1 / sqrt(H)`, unless the parametrization has another.
    pub scale: f64,
    /// Where rows are cut; `None` if each is one segment.
    pub segments: Option<&'a Segments>,
}

/// What the backward needs besides q, k and v.
#[derive(Debug)]
pub struct AttentionOutput {
    /// The result `[B * S, N * H]`.
    pub out: Tensor,
    saved: Saved,
}

#[derive(Debug)]
enum Saved {
    /// The log of each row's sum of exponentials, `[B, N, S]`.
    LogSumExp(Tensor),
    /// CUDA: the graph that libtorch keeps from q, k, v (leaves) to the result.
    Graph { inputs: [Tensor; 3], result: Tensor },
}

impl<'a> Attention<'a> {
    /// The attention of a model over a micro-batch of `[batch_size, sequence_length]` tokens.
    pub fn new(
        spec: &DecoderSpec,
        (batch_size, sequence_length): (i64, i64),
        segments: Option<&'a Segments>,
    ) -> Self {
        Self {
            batch_size,
            sequence_length,
            num_heads: spec.num_heads as i64,
            num_kv_heads: spec.num_kv_heads as i64,
            head_dim: spec.head_dim as i64,
            segments,
            scale: spec.scaling.attention,
        }
    }

    /// Attention over a fused, already rotated `qkv`.
    ///
    /// # Shapes
    /// - `qkv`: `[B * S, (N + 2 K) * H]`; the result is `[B * S, N * H]`, both in the compute
    ///   dtype; the softmax runs in the accumulation dtype
    pub fn forward(&self, compute: &Compute, qkv: &Tensor) -> AttentionOutput {
        let _stopwatch = compute.work.attention();
        if compute.has_kernels() {
            return self.forward_kernel(compute, qkv);
        }
        let [q, k, v] = self.heads(qkv);
        if matches!(compute.device, Device::Cuda(_)) {
            return self.forward_graph([q, k, v]);
        }
        let scores = self.scores(&q, &k);
        let log_sum_exp = scores.logsumexp([-1i64].as_slice(), false);
        let out = scores.softmax(-1, scores.kind()).to_kind(v.kind()).matmul(&self.spread(&v));
        AttentionOutput { out: self.merge(&out), saved: Saved::LogSumExp(log_sum_exp) }
    }

    /// The gradient of `qkv` before `rotary` rotated it, `[B * S, (N + 2 K) * H]`, for the gradient
    /// `d_out` of the result.
    ///
    /// # Shapes
    /// - `qkv` as in the forward; `d_out`: `[B * S, N * H]`
    pub fn backward(
        &self,
        (compute, rotary): (&Compute, Option<&Rotary>),
        qkv: &Tensor,
        output: &AttentionOutput,
        d_out: &Tensor,
    ) -> Tensor {
        let _stopwatch = compute.work.attention();
        let mut d_qkv = match &output.saved {
            Saved::Graph { inputs, result } => self.backward_graph(inputs, result, d_out),
            Saved::LogSumExp(log_sum_exp) if compute.has_kernels() => {
                let saved = (&output.out, log_sum_exp);
                return self.backward_kernel((compute, rotary), qkv, saved, d_out);
            }
            Saved::LogSumExp(log_sum_exp) => {
                self.backward_products(qkv, (&output.out, log_sum_exp), d_out)
            }
        };
        if let Some(rotary) = rotary {
            rotary.turn(compute, &mut d_qkv, self, Turn::Backward);
        }
        d_qkv
    }

    fn forward_kernel(&self, compute: &Compute, qkv: &Tensor) -> AttentionOutput {
        let mut out = compute.empty(&[qkv.size()[0], self.num_heads * self.head_dim]);
        let shape = [self.batch_size, self.num_heads, self.sequence_length];
        let mut log_sum_exp = compute.empty_accumulator(&shape);
        per_element!(compute, E => {
            kernel::forward::<E>(
                &mut compute.attention.borrow_mut(),
                (&self.kernel_shape(), self.segments.map(Segments::for_kernel)),
                view::slice(qkv),
                view::slice_mut(&mut out),
                view::slice_mut(&mut log_sum_exp),
            );
        });
        AttentionOutput { out, saved: Saved::LogSumExp(log_sum_exp) }
    }

    fn backward_kernel(
        &self,
        (compute, rotary): (&Compute, Option<&Rotary>),
        qkv: &Tensor,
        (out, log_sum_exp): (&Tensor, &Tensor),
        d_out: &Tensor,
    ) -> Tensor {
        let mut d_qkv = qkv.empty_like();
        per_element!(compute, E => {
            let (qkv, out) = (view::slice::<E>(qkv), view::slice::<E>(out));
            kernel::backward::<E>(
                &mut compute.attention.borrow_mut(),
                (&self.kernel_shape(), self.segments.map(Segments::for_kernel)),
                kernel::Saved { qkv, out, lse: view::slice(log_sum_exp) },
                view::slice(d_out),
                (view::slice_mut(&mut d_qkv), rotary.map(|rotary| rotary.turned(self))),
            );
        });
        d_qkv
    }

    fn kernel_shape(&self) -> kernel::AttentionShape {
        kernel::AttentionShape {
            batch: self.batch_size as usize,
            sequence_length: self.sequence_length as usize,
            num_heads: self.num_heads as usize,
            num_kv_heads: self.num_kv_heads as usize,
            head_dim: self.head_dim as usize,
            scale: self.scale as f32,
            window: None,
        }
    }

    fn backward_products(
        &self,
        qkv: &Tensor,
        (out, log_sum_exp): (&Tensor, &Tensor),
        d_out: &Tensor,
    ) -> Tensor {
        let [q, k, v] = self.heads(qkv);
        let probabilities = (self.scores(&q, &k) - log_sum_exp.unsqueeze(-1)).exp();
        let (out, d_out) = (self.split(out), self.split(d_out));
        let d_v = probabilities.transpose(2, 3).to_kind(v.kind()).matmul(&d_out);
        let d_probabilities = d_out.matmul(&self.spread(&v).transpose(2, 3));
        let delta = (&d_out * &out).sum_dim_intlist([-1i64].as_slice(), true, d_out.kind());
        let d_scores = (probabilities * (d_probabilities - delta)).to_kind(q.kind()) * self.scale;
        let d_q = d_scores.matmul(&self.spread(&k));
        let d_k = d_scores.transpose(2, 3).matmul(&q);
        self.fuse([&d_q, &self.gather(&d_k), &self.gather(&d_v)])
    }

    /// CUDA: libtorch chooses among its fused kernels; its graph keeps what its backward wants.
    fn forward_graph(&self, heads: [Tensor; 3]) -> AttentionOutput {
        let inputs = heads.map(|head| head.detach().set_requires_grad(true));
        let [q, k, v] = &inputs;
        let grouped = self.num_heads != self.num_kv_heads;
        // A mask says what is seen; without one, libtorch's own causal kernels serve.
        let mask = self.segments.map(|segments| segments.hidden().logical_not());
        let (mask, causal) = (mask.as_ref(), mask.is_none());
        let result = tch::with_grad(|| {
            Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, causal, self.scale, grouped)
        });
        let out = self.merge(&result.detach());
        AttentionOutput { out, saved: Saved::Graph { inputs, result } }
    }

    fn backward_graph(&self, inputs: &[Tensor; 3], result: &Tensor, d_out: &Tensor) -> Tensor {
        // The gradient of sum(result * d_out) is the vector-Jacobian product with d_out.
        let d_out = self.split(d_out);
        let pairing = tch::with_grad(|| (result * d_out).sum(Kind::Float));
        let grads = Tensor::run_backward(&[pairing], inputs, false, false);
        self.fuse([&grads[0], &grads[1], &grads[2]])
    }

    /// q `[B, N, S, H]`, k and v `[B, K, S, H]` as views of a fused `qkv`.
    fn heads(&self, qkv: &Tensor) -> [Tensor; 3] {
        let (n, k) = (self.num_heads, self.num_kv_heads);
        [(0, n), (n, k), (n + k, k)].map(|(first, count)| {
            qkv.view([self.batch_size, self.sequence_length, n + 2 * k, self.head_dim])
                .narrow(2, first, count)
                .transpose(1, 2)
        })
    }

    /// Masked, scaled scores `[B, N, S, S]`, at least f32.
    fn scores(&self, q: &Tensor, k: &Tensor) -> Tensor {
        let scores = q.matmul(&self.spread(k).transpose(2, 3)) * self.scale;
        let kind = if q.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let s = self.sequence_length;
        let hidden = match self.segments {
            None => Tensor::ones([s, s], (Kind::Bool, q.device())).triu(1),
            Some(segments) => segments.hidden(),
        };
        scores.to_kind(kind).masked_fill(&hidden, f64::NEG_INFINITY)
    }

    /// kv heads `[B, K, S, H]` repeated for their queries: `[B, N, S, H]`.
    fn spread(&self, kv: &Tensor) -> Tensor {
        let group = self.num_heads / self.num_kv_heads;
        if group == 1 { kv.shallow_clone() } else { kv.repeat_interleave_self_int(group, 1, None) }
    }

    /// The transpose of `spread`: sums over each group of queries, `[B, N, S, H]` to `[B, K, S, H]`.
    fn gather(&self, d_kv: &Tensor) -> Tensor {
        let group = self.num_heads / self.num_kv_heads;
        let (b, s, h) = (self.batch_size, self.sequence_length, self.head_dim);
        d_kv.view([b, self.num_kv_heads, group, s, h]).sum_dim_intlist(
            [2i64].as_slice(),
            false,
            d_kv.kind(),
        )
    }

    /// `[B * S, N * H]` as `[B, N, S, H]`.
    fn split(&self, merged: &Tensor) -> Tensor {
        merged
            .view([self.batch_size, self.sequence_length, self.num_heads, self.head_dim])
            .transpose(1, 2)
    }

    /// `[B, N, S, H]` as contiguous `[B * S, N * H]`.
    fn merge(&self, heads: &Tensor) -> Tensor {
        heads.transpose(1, 2).reshape([-1, self.num_heads * self.head_dim])
    }

    /// Gradients of q, k, v in head form, fused as `[B * S, (N + 2 K) * H]`.
    fn fuse(&self, grads: [&Tensor; 3]) -> Tensor {
        let width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim;
        Tensor::cat(&grads.map(|grad| grad.transpose(1, 2)), 2).reshape([-1, width])
    }
}
