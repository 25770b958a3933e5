//! `GaLore`: Adam on a gradient projected to few singular directions (Zhao et al. 2024,
//! arXiv:2403.03507, algorithm 2).

use tch::Tensor;

use super::facts::ParamFacts;
use super::ranges::{require_count, require_positive, require_weight_decay};
use super::state::{WholeStateKind, WholeStateSpec};
use super::subspace::SubspaceAdam;
use crate::elements::Scalars;
use crate::error::Result;

/// Hyper-parameters of [`Galore`]; the defaults are those of the paper's 60M to 1B models and of
/// its authors' code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GaloreConfig {
    /// Number of singular directions, at most the smaller dim of a matrix. Default 128; the paper
    /// takes a quarter of the hidden size, or half of it.
    pub rank: u64,
    /// Updates between two decompositions. Default 200.
    pub refresh_every: u64,
    /// Factor on the learning rate. Default 0.25.
    pub scale: f64,
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment. Default 1e-6.
    pub eps: f64,
    /// Decoupled weight decay before the group's multiplier. Default 0.
    pub weight_decay: f64,
}

impl Default for GaloreConfig {
    fn default() -> Self {
        Self {
            rank: 128,
            refresh_every: 200,
            scale: 0.25,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.0,
        }
    }
}

/// `GaLore` with validated hyper-parameters, for matrices inside blocks only.
///
/// With `g = grad_scale * grad` of `[rows, cols]`, `r = min(rank, rows, cols)` and update number
/// `t` (from 1):
///
/// ```text
/// P     <- the first r right singular vectors of g, one a row; left ones, one a column, if
///          rows < cols                                          (if (t - 1) % refresh_every = 0)
/// p     = g P^T                                                 (rows < cols: P^T g)
/// m     <- beta1 m + (1 - beta1) p              v <- beta2 v + (1 - beta2) p^2
/// d     = sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
/// theta <- (1 - lr weight_decay) (theta - lr scale d P)         (rows < cols: P d)
/// ```
///
/// Decay comes after, and `eps` before the bias correction, as in the authors' code. Moments stay
/// when `P` changes, in coordinates that then mean something else. Each singular vector's sign is
/// the one that makes its largest entry positive, which no decomposition decides: so the same
/// run has the same moments on every device. Worked number: a 2 x 1 matrix g = (3, 4), rank
/// 1, t = 1, lr = 0.01: P = 1, p = g, d = (1, 1), and the updates are 0.01 * 0.25 = 0.0025 twice.
///
/// Temporaries: two of the projected size besides the update; at a refresh those of a full
/// decomposition. On a GPU, libtorch's decomposition synchronizes; other updates do not. Pass the
/// number of updates since the state was zero as `step`: update 1 makes the first `P`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Galore {
    config: GaloreConfig,
}

impl Galore {
    pub(crate) const NAME: &'static str = "galore";

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: GaloreConfig) -> Result<Self> {
        require_count("optim.rank", config.rank, 128.0)?;
        require_count("optim.refresh_every", config.refresh_every, 200.0)?;
        require_positive("optim.scale", config.scale, 0.25)?;
        require_weight_decay(config.weight_decay, 0.0)?;
        let galore = Self { config };
        galore.adam().require(SubspaceAdam { beta1: 0.9, beta2: 0.999, eps: 1e-6 })?;
        Ok(galore)
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &GaloreConfig {
        &self.config
    }

    fn adam(&self) -> SubspaceAdam {
        let GaloreConfig { beta1, beta2, eps, .. } = self.config;
        SubspaceAdam { beta1, beta2, eps }
    }

    pub(super) fn state_specs(&self, facts: &ParamFacts) -> Vec<WholeStateSpec> {
        let Some([rows, cols]) = facts.matrix() else { return Vec::new() };
        let rank = i64::try_from(self.config.rank).unwrap_or(i64::MAX).min(rows).min(cols);
        let (projector, projected) =
            if rows >= cols { ([rank, cols], [rows, rank]) } else { ([rows, rank], [rank, cols]) };
        vec![
            WholeStateSpec::new(WholeStateKind::Projector, &projector),
            WholeStateSpec::new(WholeStateKind::ProjectedFirstMoment, &projected),
            WholeStateSpec::new(WholeStateKind::ProjectedSecondMoment, &projected),
        ]
    }

    pub(super) fn update(
        &self,
        grad: &Tensor,
        state: &mut [Tensor],
        scalars: &Scalars,
    ) -> Result<Tensor> {
        let GaloreConfig { refresh_every, scale, .. } = self.config;
        let [projector, first, second] = state else {
            unreachable!("the number of states was checked")
        };
        let is_right = grad.size()[0] >= grad.size()[1];
        if (scalars.step - 1).is_multiple_of(refresh_every) {
            projector.f_copy_(&singular_vectors(grad, projector.size(), is_right)?)?;
        }
        let transposed = projector.f_tr()?;
        let projected = if is_right { grad.f_mm(&transposed)? } else { transposed.f_mm(grad)? };
        let mut direction = self.adam().direction(&projected, first, second, scalars.step)?;
        let _ = direction.f_mul_scalar_(scalars.lr * scale)?;
        Ok(if is_right { direction.f_mm(projector)? } else { projector.f_mm(&direction)? })
    }
}

/// The first right singular vectors as rows, or the first left ones as columns, with a positive
/// largest entry each; `shape` says how many.
fn singular_vectors(matrix: &Tensor, shape: Vec<i64>, is_right: bool) -> Result<Tensor> {
    // `linalg_svd` of tch always names a driver, which libtorch refuses on the CPU.
    let (left, _, right) = matrix.f_svd(true, true)?;
    let (vectors, dim) = if is_right {
        (right.f_narrow(1, 0, shape[0])?.f_tr()?, 1)
    } else {
        (left.f_narrow(1, 0, shape[1])?, 0)
    };
    let largest = vectors.f_abs()?.f_argmax(dim, true)?;
    let sign = vectors.f_gather(dim, &largest, false)?.f_sign()?;
    Ok(vectors.f_mul(&sign)?)
}

#[cfg(test)]
mod tests;
