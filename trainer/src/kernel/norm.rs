//! RMSNorm and LayerNorm over the last dim, forward and backward.
//!
//! Legend: N rows (tokens), D hidden. All arithmetic is in f32 and each result is rounded once.
//! Hugging Face rounds the normalized value to the activation dtype before it multiplies by the
//! weight; here the weight multiplies the unrounded value, which is never less exact.

use self::row::{Gradients, Output, Saved, Scale, backward, forward};
use super::element::Element;
use super::pool::Pool;

mod row;
#[cfg(test)]
mod tests;

/// Root-mean-square normalization, `y = x / sqrt(mean(x^2) + eps) * weight`.
///
/// # References
/// Zhang and Sennrich 2019, arXiv:1910.07467, equation 4 (eps is not in the paper).
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a, E> {
    /// `[D]`, the working copy of the scale.
    pub weight: &'a [E],
    /// Added to the mean square, so that a row of zeros stays finite.
    pub eps: f32,
}

/// Layer normalization, `y = (x - mean) / sqrt(var + eps) * weight + bias`.
///
/// # References
/// Ba et al. 2016, arXiv:1607.06450, equation 4 (eps is not in the paper).
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a, E> {
    /// `[D]`, the working copy of the scale.
    pub weight: &'a [E],
    /// `[D]`, the working copy of the shift.
    pub bias: &'a [E],
    /// Added to the variance, so that a constant row stays finite.
    pub eps: f32,
}

/// The gradients that arrive at a normalization layer.
#[derive(Debug, Clone, Copy)]
pub struct Upstream<'a, E> {
    /// `[N, D]`, of the layer's output.
    pub dy: &'a [E],
    /// `[N, D]`, what reaches the layer's input by the residual path around it; added to `dx` before
    /// the one rounding.
    pub d_residual: Option<&'a [E]>,
}

/// The statistics of each row that [`LayerNorm::forward`] writes.
#[derive(Debug)]
pub struct LayerNormStatistics<'a> {
    /// `[N]`, the mean.
    pub mean: &'a mut [f32],
    /// `[N]`, `1 / sqrt(var + eps)`.
    pub rstd: &'a mut [f32],
}

/// What [`LayerNorm::backward`] needs from the forward pass.
#[derive(Debug, Clone, Copy)]
pub struct LayerNormSaved<'a, E> {
    /// `[N, D]`, the input.
    pub x: &'a [E],
    /// `[N]`, as written by the forward pass.
    pub mean: &'a [f32],
    /// `[N]`, as written by the forward pass.
    pub rstd: &'a [f32],
}

/// What [`RmsNorm::backward`] needs from the forward pass.
#[derive(Debug, Clone, Copy)]
pub struct RmsNormSaved<'a, E> {
    /// `[N, D]`, the input.
    pub x: &'a [E],
    /// `[N]`, as written by the forward pass.
    pub rstd: &'a [f32],
}

/// Where [`LayerNorm::backward`] writes.
#[derive(Debug)]
pub struct LayerNormGradients<'a, E> {
    /// `[N, D]`, overwritten.
    pub dx: &'a mut [E],
    /// `[D]`, added to.
    pub d_weight: &'a mut [f32],
    /// `[D]`, added to.
    pub d_bias: &'a mut [f32],
}

impl<E: Element> RmsNorm<'_, E> {
    /// Normalizes each row of `x` `[N, D]` into `y` `[N, D]` and writes `rstd` `[N]`,
    /// `1 / sqrt(mean(x^2) + eps)`, for the backward pass.
    ///
    /// # Panics
    /// If a length does not fit the others.
    pub fn forward(&self, pool: &Pool, x: &[E], y: &mut [E], rstd: &mut [f32]) {
        let scale = Scale { weight: self.weight, bias: None };
        forward(pool, scale, self.eps, x, Output { y, mean: None, rstd });
    }

    /// The gradients of [`RmsNorm::forward`]: overwrites `dx` `[N, D]`, adds to `d_weight` `[D]`.
    ///
    /// With `h = x * rstd` and `g = dy * weight`, `dx = rstd * (g - h * mean(g * h)) + d_residual` and
    /// `d_weight += sum over rows of dy * h`.
    ///
    /// # Panics
    /// If a length does not fit the others.
    pub fn backward(
        &self,
        pool: &Pool,
        upstream: Upstream<'_, E>,
        saved: RmsNormSaved<'_, E>,
        dx: &mut [E],
        d_weight: &mut [f32],
    ) {
        let saved = Saved { x: saved.x, mean: None, rstd: saved.rstd };
        backward(pool, self.weight, upstream, saved, Gradients { dx, d_weight, d_bias: None });
    }
}

impl<E: Element> LayerNorm<'_, E> {
    /// Normalizes each row of `x` `[N, D]` into `y` `[N, D]` and writes the statistics that the
    /// backward pass needs. The variance is that of the centered row, not a difference of squares.
    ///
    /// # Panics
    /// If a length does not fit the others.
    pub fn forward(&self, pool: &Pool, x: &[E], y: &mut [E], statistics: LayerNormStatistics<'_>) {
        let LayerNormStatistics { mean, rstd } = statistics;
        let scale = Scale { weight: self.weight, bias: Some(self.bias) };
        forward(pool, scale, self.eps, x, Output { y, mean: Some(mean), rstd });
    }

    /// The gradients of [`LayerNorm::forward`].
    ///
    /// With `h = (x - mean) * rstd` and `g = dy * weight`,
    /// `dx = rstd * (g - mean(g) - h * mean(g * h)) + d_residual`; `d_weight += sum over rows of
    /// dy * h`; `d_bias += sum over rows of dy`.
    ///
    /// # Panics
    /// If a length does not fit the others.
    pub fn backward(
        &self,
        pool: &Pool,
        upstream: Upstream<'_, E>,
        saved: LayerNormSaved<'_, E>,
        gradients: LayerNormGradients<'_, E>,
    ) {
        let LayerNormGradients { dx, d_weight, d_bias } = gradients;
        let saved = Saved { x: saved.x, mean: Some(saved.mean), rstd: saved.rstd };
        let gradients = Gradients { dx, d_weight, d_bias: Some(d_bias) };
        backward(pool, self.weight, upstream, saved, gradients);
    }
}
