//! RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4) and LayerNorm (Ba et al. 2016,
//! arXiv:1607.06450, eq. 4), forward and backward, with statistics in the accumulation dtype.

use tch::Tensor;

use super::compute::{Compute, per_element};
use super::config::NormKind;
use super::units::NormIndex;
use super::views::{Grads, Weights};
use crate::cuda::{Fused, NormInput};
use crate::kernel::norm::{
    LayerNorm, LayerNormGradients, LayerNormSaved, LayerNormStatistics, RmsNorm, RmsNormSaved,
    Upstream,
};
use crate::kernel::view;

/// What a norm's backward needs besides its input.
#[derive(Debug)]
pub struct NormStatistics {
    /// Row means `[N]` (`LayerNorm` only).
    pub mean: Option<Tensor>,
    /// Reciprocal root mean squares (deviations) of the rows `[N]`.
    pub rstd: Tensor,
}

/// A norm of one kind: where its parameters are, and its epsilon.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// RMS or layer norm.
    pub kind: NormKind,
    /// Added to the mean square (variance) before the root.
    pub eps: f64,
    /// The part of the elements of a row that count in the mean square: below 1 where others are on
    /// their way from 0 ([`super::ramp`]), for RMS norms only.
    pub share: f64,
    /// Indices of weight and bias in the unit.
    pub index: NormIndex,
}

impl Norm {
    /// The same norm where `share` of a row's elements count.
    #[must_use]
    pub fn of_share(self, share: f64) -> Self {
        Self { share, ..self }
    }

    /// What the mean square over all elements needs for that over those that count: the square root
    /// of the share, a factor on the result beside [`Self::whole_eps`].
    fn factor(&self) -> f64 {
        self.share.sqrt()
    }

    fn whole_eps(&self) -> f64 {
        self.eps * self.share
    }

    /// `y = (x - mean) * rstd * weight + bias` (mean and bias for layer norms only).
    ///
    /// # Shapes
    /// - `x`: `[N, D]`; returns `y` `[N, D]` in the compute dtype, rounded once where all elements
    ///   count, and the statistics
    pub fn forward(
        &self,
        compute: &Compute,
        weights: &Weights<'_>,
        x: &Tensor,
    ) -> (Tensor, NormStatistics) {
        let (y, statistics) = self.whole_forward(compute, weights, x);
        (if self.share == 1.0 { y } else { y * self.factor() }, statistics)
    }

    fn whole_forward(
        &self,
        compute: &Compute,
        weights: &Weights<'_>,
        x: &Tensor,
    ) -> (Tensor, NormStatistics) {
        if let Some(fused) = compute.fused(x.size()[1]) {
            let (weight, bias) = self.parameters(weights);
            let (y, mean, rstd) = fused.norm_forward(x, (&weight, bias.as_ref()), self.whole_eps());
            return (y, NormStatistics { mean, rstd });
        }
        if compute.has_kernels() {
            return self.forward_kernel(compute, weights, x);
        }
        let wide = x.to_kind(compute.accumulation());
        let mean = (self.kind == NormKind::Layer).then(|| row_mean(&wide));
        let centered = mean.as_ref().map_or_else(|| wide.shallow_clone(), |mean| &wide - mean);
        let rstd = (row_mean(&centered.square()) + self.whole_eps()).rsqrt();
        let mut y = &centered * &rstd * weights.get(self.index.weight).to_kind(wide.kind());
        if let Some(bias) = self.index.bias {
            y += weights.get(bias).to_kind(wide.kind());
        }
        let mean = mean.map(|mean| mean.squeeze_dim(-1));
        (y.to_kind(x.kind()), NormStatistics { mean, rstd: rstd.squeeze_dim(-1) })
    }

    /// Adds the gradients of weight and bias to `grads`; returns `residual + dx`, where `residual`
    /// is the gradient that reaches `x` past the norm.
    ///
    /// # Shapes
    /// - `x`, `dy`, `residual`: `[N, D]`; returns `[N, D]`
    pub fn backward(
        &self,
        compute: &Compute,
        (weights, grads): (&Weights<'_>, &Grads<'_>),
        (x, statistics): (&Tensor, &NormStatistics),
        dy: &Tensor,
        residual: Option<&Tensor>,
    ) -> Tensor {
        let scaled = (self.share != 1.0).then(|| dy * self.factor());
        let dy = scaled.as_ref().unwrap_or(dy);
        if let Some(fused) = compute.fused(x.size()[1]) {
            let state = (x, statistics);
            return self.backward_fused((fused, compute), (weights, grads), state, (dy, residual));
        }
        if compute.has_kernels() {
            return self.backward_kernel(
                compute,
                (weights, grads),
                (x, statistics),
                (dy, residual),
            );
        }
        let kind = compute.accumulation();
        let (wide, dy) = (x.to_kind(kind), dy.to_kind(kind));
        let rstd = statistics.rstd.unsqueeze(-1);
        let centered = match &statistics.mean {
            Some(mean) => wide - mean.unsqueeze(-1),
            None => wide,
        };
        let normalized = centered * &rstd;
        put_row_sum(compute, grads, self.index.weight, &(&dy * &normalized));
        if let Some(bias) = self.index.bias {
            put_row_sum(compute, grads, bias, &dy);
        }
        let scaled = dy * weights.get(self.index.weight).to_kind(kind);
        let along = row_mean(&(&scaled * &normalized));
        let mut dx = &scaled - normalized * along;
        if self.kind == NormKind::Layer {
            dx -= row_mean(&scaled);
        }
        let dx = dx * rstd;
        match residual {
            Some(residual) => (dx + residual.to_kind(kind)).to_kind(x.kind()),
            None => dx.to_kind(x.kind()),
        }
    }
}

impl Norm {
    fn forward_kernel(
        &self,
        compute: &Compute,
        weights: &Weights<'_>,
        x: &Tensor,
    ) -> (Tensor, NormStatistics) {
        let (weight, bias) = self.parameters(weights);
        let rows = [x.size()[0]];
        let mut y = x.empty_like();
        let mut rstd = compute.empty_accumulator(&rows);
        let mut mean = bias.as_ref().map(|_| compute.empty_accumulator(&rows));
        per_element!(compute, E => {
            let (x, y) = (view::slice::<E>(x), view::slice_mut::<E>(&mut y));
            let (weight, rstd) = (view::slice::<E>(&weight), view::slice_mut(&mut rstd));
            let eps = self.whole_eps() as f32;
            match (&bias, &mut mean) {
                (Some(bias), Some(mean)) => {
                    let statistics = LayerNormStatistics { mean: view::slice_mut(mean), rstd };
                    LayerNorm { weight, bias: view::slice(bias), eps }
                        .forward(&compute.pool, x, y, statistics);
                }
                _ => RmsNorm { weight, eps }.forward(&compute.pool, x, y, rstd),
            }
        });
        (y, NormStatistics { mean, rstd })
    }

    fn backward_kernel(
        &self,
        compute: &Compute,
        (weights, grads): (&Weights<'_>, &Grads<'_>),
        (x, statistics): (&Tensor, &NormStatistics),
        (dy, residual): (&Tensor, Option<&Tensor>),
    ) -> Tensor {
        let (weight, bias) = self.parameters(weights);
        let mut dx = x.empty_like();
        let mut d_weight = grads.open(compute, self.index.weight);
        let mut d_bias = self.index.bias.map(|bias| grads.open(compute, bias));
        per_element!(compute, E => {
            let (x, weight) = (view::slice::<E>(x), view::slice::<E>(&weight));
            let (rstd, eps) = (view::slice(&statistics.rstd), self.whole_eps() as f32);
            let dx = view::slice_mut::<E>(&mut dx);
            let d_weight = view::slice_mut(&mut d_weight);
            let upstream = Upstream { dy: view::slice(dy), d_residual: residual.map(view::slice) };
            match (&bias, &mut d_bias, &statistics.mean) {
                (Some(bias), Some(d_bias), Some(mean)) => {
                    let saved = LayerNormSaved { x, mean: view::slice(mean), rstd };
                    let d_bias = view::slice_mut(d_bias);
                    LayerNorm { weight, bias: view::slice(bias), eps }.backward(
                        &compute.pool,
                        upstream,
                        saved,
                        LayerNormGradients { dx, d_weight, d_bias },
                    );
                }
                _ => {
                    let saved = RmsNormSaved { x, rstd };
                    RmsNorm { weight, eps }.backward(&compute.pool, upstream, saved, dx, d_weight);
                }
            }
        });
        grads.close(compute, self.index.weight, &d_weight);
        if let (Some(bias), Some(d_bias)) = (self.index.bias, &d_bias) {
            grads.close(compute, bias, d_bias);
        }
        dx
    }

    fn backward_fused(
        &self,
        (fused, compute): (&Fused, &Compute),
        (weights, grads): (&Weights<'_>, &Grads<'_>),
        (x, statistics): (&Tensor, &NormStatistics),
        (dy, residual): (&Tensor, Option<&Tensor>),
    ) -> Tensor {
        let (weight, _) = self.parameters(weights);
        let (mean, rstd) = (statistics.mean.as_ref(), &statistics.rstd);
        let found = fused.norm_backward(NormInput { x, weight: &weight, mean, rstd }, dy, residual);
        put(compute, grads, self.index.weight, &found.d_weight);
        if let (Some(bias), Some(d_bias)) = (self.index.bias, &found.d_bias) {
            put(compute, grads, bias, d_bias);
        }
        found.dx
    }

    fn parameters(&self, weights: &Weights<'_>) -> (Tensor, Option<Tensor>) {
        (weights.get(self.index.weight), self.index.bias.map(|bias| weights.get(bias)))
    }
}

/// The mean over the last dim, kept as a dim of size 1.
fn row_mean(x: &Tensor) -> Tensor {
    x.mean_dim([-1i64].as_slice(), true, x.kind())
}

fn put_row_sum(compute: &Compute, grads: &Grads<'_>, index: usize, rows: &Tensor) {
    let sum = rows.sum_dim_intlist([0i64].as_slice(), false, compute.accumulation());
    put(compute, grads, index, &sum);
}

fn put(compute: &Compute, grads: &Grads<'_>, index: usize, gradient: &Tensor) {
    let mut sum = grads.open(compute, index);
    let _ = sum.g_add_(gradient);
    grads.close(compute, index, &sum);
}
