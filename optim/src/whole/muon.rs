//! Muon: momentum made orthogonal by a Newton-Schulz iteration (Jordan et al. 2024,
//! <https://kellerjordan.github.io/posts/muon/>; Liu et al. 2025, arXiv:2502.16982, section 2).

use tch::{Kind, Tensor};

use super::facts::{Orientation, ParamFacts};
use super::ranges::{require_beta, require_count, require_weight_decay};
use super::state::{WholeStateKind, WholeStateSpec};
use crate::elements::Scalars;
use crate::error::Result;

/// Coefficients `(a, b, c)` of the quintic `a x + b x^3 + c x^5`, which lifts small singular values
/// fastest and stays near 1 (Jordan et al. 2024).
const QUINTIC: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);

/// The least norm a matrix is divided by, as in `torch.optim.Muon`: what is smaller is no
/// gradient.
const NORM_FLOOR: f64 = 1e-7;

/// How the learning rate of a matrix depends on its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuonScale {
    /// `sqrt(max(1, outputs / inputs))` (Jordan et al. 2024): `lr` 0.02 or so, its own.
    Original,
    /// `0.2 sqrt(max(outputs, inputs))` (Liu et al. 2025, equation 4): the update's root mean
    /// square is that of `AdamW`, whose `lr` and `weight_decay` can be kept.
    MatchRms,
}

/// What the Newton-Schulz iteration computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuonPrecision {
    /// The gradient's dtype: f32, or f64 in an f64 run.
    Accumulation,
    /// bf16, as in the authors' code: for GPUs, where products of bf16 matrices are many times
    /// faster. The update's cosine with that in f32 is above 0.999.
    Bf16,
}

/// Hyper-parameters of [`Muon`]; the defaults are those of Liu et al. 2025 for language models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MuonConfig {
    /// Decay of the momentum. Default 0.95.
    pub momentum: f64,
    /// Whether to step along `(1 - momentum) g + momentum m` instead of `m`. Default true.
    pub nesterov: bool,
    /// Number of Newton-Schulz iterations. Default 5; more do not bring singular values nearer 1.
    pub num_iterations: u64,
    /// How the learning rate depends on the shape. Default [`MuonScale::MatchRms`].
    pub scale: MuonScale,
    /// What the iteration computes in. Default [`MuonPrecision::Accumulation`].
    pub precision: MuonPrecision,
    /// Decoupled weight decay before the group's multiplier. Default 0.1; without any, weights
    /// grow in long runs (Liu et al. 2025, section 2.2).
    pub weight_decay: f64,
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            nesterov: true,
            num_iterations: 5,
            scale: MuonScale::MatchRms,
            precision: MuonPrecision::Accumulation,
            weight_decay: 0.1,
        }
    }
}

/// Muon with validated hyper-parameters, for matrices inside blocks only; everything else is best
/// left to `AdamW`.
///
/// With `g = grad_scale * grad`:
///
/// ```text
/// m     <- momentum m + (1 - momentum) g
/// n     = (1 - momentum) g + momentum m          (nesterov; else n = m)
/// X     = n / max(norm(n), 1e-7)                 (Frobenius; transposed if taller than wide)
/// X     <- a X + (b A + c A^2) X,  A = X X^T     (num_iterations times)
/// theta <- (1 - lr weight_decay) theta - lr scale X
/// ```
///
/// A matrix of several [`ParamFacts::parts`] (GPT-2's fused q, k, v) takes each part for itself.
/// Singular values of `n` from 0.005 of its norm on come out in 0.68 to 1.15; the direction does
/// not depend on the gradient's size. Worked number: a 1 x 1 matrix n = 3, so X = 1, and the
/// iterations give 0.7010, 1.1136, 0.7207, 1.0900, 0.6964: an update of 0.2 * 0.6964 lr.
///
/// Temporaries: four of the matrix's size and two squares of its smaller dim. Products:
/// `num_iterations (4 n^2 m + 2 n^3)` operations, n the smaller dim. No synchronization with a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    config: MuonConfig,
}

impl Muon {
    pub(crate) const NAME: &'static str = "muon";

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: MuonConfig) -> Result<Self> {
        require_beta("optim.momentum", config.momentum, 0.95)?;
        require_count("optim.num_iterations", config.num_iterations, 5.0)?;
        require_weight_decay(config.weight_decay, 0.1)?;
        Ok(Self { config })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &MuonConfig {
        &self.config
    }

    pub(super) fn state_specs(facts: &ParamFacts) -> Vec<WholeStateSpec> {
        vec![WholeStateSpec::new(WholeStateKind::Momentum, &facts.shape)]
    }

    pub(super) fn update(
        &self,
        grad: Tensor,
        state: &mut [Tensor],
        facts: &ParamFacts,
        scalars: &Scalars,
    ) -> Result<Tensor> {
        let MuonConfig { momentum, nesterov, .. } = self.config;
        let [buffer] = state else { unreachable!("the number of states was checked") };
        let _ = buffer.f_lerp_(&grad, 1.0 - momentum)?;
        let direction =
            if nesterov { grad.f_lerp(buffer, momentum)? } else { buffer.shallow_clone() };
        drop(grad);
        let output_dim = facts.output_dim() as i64;
        let mut parts = Vec::with_capacity(facts.parts.len());
        let mut start = 0;
        for part in &facts.parts {
            let matrix = direction.f_narrow(output_dim, start, part.num_outputs)?;
            let mut orthogonal = self.orthogonalize(&matrix)?;
            let scale = self.scale(&orthogonal.size(), facts.orientation);
            parts.push(orthogonal.f_mul_scalar_(scalars.lr * scale)?);
            start += part.num_outputs;
        }
        Ok(Tensor::f_cat(&parts, output_dim)?)
    }

    /// The factor on the learning rate of a part of this shape.
    fn scale(&self, shape: &[i64], orientation: Orientation) -> f64 {
        let (rows, cols) = (shape[0] as f64, shape[1] as f64);
        let (outputs, inputs) = match orientation {
            Orientation::OutIn => (rows, cols),
            Orientation::InOut => (cols, rows),
        };
        match self.config.scale {
            MuonScale::Original => (outputs / inputs).max(1.0).sqrt(),
            MuonScale::MatchRms => 0.2 * outputs.max(inputs).sqrt(),
        }
    }

    /// `U S' V^T` for `matrix = U S V^T`, with `S'` near 1: a new tensor of its shape and dtype.
    fn orthogonalize(&self, matrix: &Tensor) -> Result<Tensor> {
        let (a, b, c) = QUINTIC;
        let norm = matrix.f_norm()?.f_clamp_min(NORM_FLOOR)?;
        let mut x = matrix.f_div(&norm)?;
        if self.config.precision == MuonPrecision::Bf16 {
            x = x.f_to_kind(Kind::BFloat16)?;
        }
        let size = matrix.size();
        let is_tall = size[0] > size[1];
        if is_tall {
            x = x.f_tr()?;
        }
        // `addmm` has no factors in tch; `baddbmm` has, for a batch of matrices: a batch of one.
        x = x.f_unsqueeze(0)?;
        for _ in 0..self.config.num_iterations {
            let gram = x.f_bmm(&x.f_transpose(1, 2)?)?;
            let polynomial = gram.f_baddbmm(&gram, &gram, b, c)?;
            x = x.f_baddbmm(&polynomial, &x, a, 1.0)?;
        }
        x = x.f_squeeze_dim(0)?;
        if is_tall {
            x = x.f_tr()?;
        }
        Ok(x.f_to_kind(matrix.kind())?)
    }
}

#[cfg(test)]
mod tests;
