//! SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv:2409.11321,
//! algorithms 3 and 4).

use tch::Tensor;

use super::facts::ParamFacts;
use super::ranges::{require_beta, require_count, require_weight_decay};
use super::state::{WholeStateKind, WholeStateSpec};
use super::subspace::SubspaceAdam;
use crate::elements::Scalars;
use crate::error::Result;

/// Hyper-parameters of [`Soap`]; the defaults are those of the authors' code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoapConfig {
    /// Decay of the first moment. Default 0.95.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.95.
    pub beta2: f64,
    /// Decay of the covariances. Default 0.95.
    pub covariance_beta: f64,
    /// Added to the root of the second moment. Default 1e-8.
    pub eps: f64,
    /// Updates between two refreshes of the bases. Default 10.
    pub refresh_every: u64,
    /// A side longer than this keeps its own coordinates. Default 10000.
    pub max_basis_dim: u64,
    /// Decoupled weight decay before the group's multiplier. Default 0.01.
    pub weight_decay: f64,
}

impl Default for SoapConfig {
    fn default() -> Self {
        Self {
            beta1: 0.95,
            beta2: 0.95,
            covariance_beta: 0.95,
            eps: 1e-8,
            refresh_every: 10,
            max_basis_dim: 10_000,
            weight_decay: 0.01,
        }
    }
}

/// SOAP with validated hyper-parameters, for matrices inside blocks only.
///
/// With `g = grad_scale * grad` and `t` the update's number less one, so from 0:
///
/// ```text
/// p     = Ql^T g Qr                                                      (t >= 1)
/// m     <- beta1 m + (1 - beta1) p              v <- beta2 v + (1 - beta2) p^2
/// d     = sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
/// theta <- (1 - lr weight_decay) (theta - lr Ql d Qr^T)
/// L     <- covariance_beta L + (1 - covariance_beta) g g^T               R likewise of g^T g
/// Ql    <- eigenvectors of L, the largest eigenvalue first               (t = 0)
/// Ql    <- Q of the QR decomposition of L Ql                             (t % refresh_every = 0)
/// ```
///
/// The first update only makes the bases and subtracts nothing, so that no gradient is seen in
/// coordinates it chose; the decay still applies (the authors' code skips it there). At a refresh
/// columns of `Ql` are sorted by `diag(Ql^T L Ql)`, the largest first, `v` with them, and `m` is
/// carried over to the new basis. Decay after the step and `eps` before the bias correction are
/// the authors' code's. Worked number: a 1 x 1 matrix g = 2 twice, lr = 0.1: the first update is 0;
/// in the second m = 0.05 * 2, v = 0.05 * 4, corrected 2 and 4, and the update is 0.1.
///
/// Temporaries: three of the matrix's size and squares of both dims. On a GPU, the eigenvectors
/// of the first update synchronize; whether a refresh's QR does is up to libtorch; other updates
/// do not. Pass the number of updates since the state was zero as `step`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Soap {
    config: SoapConfig,
}

impl Soap {
    pub(crate) const NAME: &'static str = "soap";

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: SoapConfig) -> Result<Self> {
        require_beta("optim.covariance_beta", config.covariance_beta, 0.95)?;
        require_count("optim.refresh_every", config.refresh_every, 10.0)?;
        require_count("optim.max_basis_dim", config.max_basis_dim, 10_000.0)?;
        require_weight_decay(config.weight_decay, 0.01)?;
        let soap = Self { config };
        soap.adam().require(SubspaceAdam { beta1: 0.95, beta2: 0.95, eps: 1e-8 })?;
        Ok(soap)
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &SoapConfig {
        &self.config
    }

    fn adam(&self) -> SubspaceAdam {
        let SoapConfig { beta1, beta2, eps, .. } = self.config;
        SubspaceAdam { beta1, beta2, eps }
    }

    /// Whether a side of this length has a basis.
    fn has_basis(&self, size: i64) -> bool {
        size as u64 <= self.config.max_basis_dim
    }

    pub(super) fn state_specs(&self, facts: &ParamFacts) -> Vec<WholeStateSpec> {
        let Some(sizes) = facts.matrix() else { return Vec::new() };
        let mut specs = vec![
            WholeStateSpec::new(WholeStateKind::RotatedFirstMoment, &facts.shape),
            WholeStateSpec::new(WholeStateKind::RotatedSecondMoment, &facts.shape),
        ];
        let kinds = [
            [WholeStateKind::CovarianceLeft, WholeStateKind::BasisLeft],
            [WholeStateKind::CovarianceRight, WholeStateKind::BasisRight],
        ];
        for (size, kinds) in sizes.into_iter().zip(kinds) {
            if self.has_basis(size) {
                specs.extend(kinds.map(|kind| WholeStateSpec::new(kind, &[size, size])));
            }
        }
        specs
    }

    pub(super) fn update(
        &self,
        grad: &Tensor,
        state: &mut [Tensor],
        scalars: &Scalars,
    ) -> Result<Tensor> {
        let Some(([first, second], state)) = state.split_first_chunk_mut() else {
            unreachable!("the number of states was checked")
        };
        let mut sides = self.sides(&grad.size(), state);
        let adam_step = scalars.step - 1;
        if adam_step == 0 {
            for side in &mut sides {
                side.advance(grad, self.config.covariance_beta)?;
                side.decompose()?;
            }
            return Ok(grad.f_zeros_like()?);
        }
        let rotated = rotate(&sides, grad)?;
        let direction = self.adam().direction(&rotated, first, second, adam_step)?;
        drop(rotated);
        let mut update = rotate_back(&sides, &direction)?;
        let _ = update.f_mul_scalar_(scalars.lr)?;
        for side in &mut sides {
            side.advance(grad, self.config.covariance_beta)?;
        }
        if adam_step.is_multiple_of(self.config.refresh_every) {
            let unrotated = rotate_back(&sides, first)?;
            for side in &mut sides {
                side.refresh(second)?;
            }
            first.f_copy_(&rotate(&sides, &unrotated)?)?;
        }
        Ok(update)
    }

    /// The sides with a basis, over their state tensors.
    fn sides<'a>(&self, sizes: &[i64], state: &'a mut [Tensor]) -> Vec<Side<'a>> {
        let dims = (0..).zip(sizes).filter(|&(_, &size)| self.has_basis(size));
        dims.zip(state.chunks_exact_mut(2))
            .map(|((dim, _), tensors)| {
                let [covariance, basis] = tensors else { unreachable!("chunks of two") };
                Side { dim, covariance, basis }
            })
            .collect()
    }
}

/// One side of a matrix with its preconditioner.
struct Side<'a> {
    /// 0: left, the rows' side; 1: right, the columns'.
    dim: i64,
    /// `[size, size]`, symmetric.
    covariance: &'a mut Tensor,
    /// `[size, size]`, orthonormal columns.
    basis: &'a mut Tensor,
}

impl Side<'_> {
    /// Folds the gradient's covariance into the average.
    fn advance(&mut self, grad: &Tensor, beta: f64) -> Result<()> {
        let transposed = grad.f_tr()?;
        let product =
            if self.dim == 0 { grad.f_mm(&transposed)? } else { transposed.f_mm(grad)? };
        let _ = self.covariance.f_lerp_(&product, 1.0 - beta)?;
        Ok(())
    }

    /// Makes the basis from scratch.
    fn decompose(&mut self) -> Result<()> {
        let (_, ascending) = self.covariance.f_linalg_eigh("L")?;
        Ok(self.basis.f_copy_(&ascending.f_flip([1])?)?)
    }

    /// One round of power iteration from the old basis, sorted, with `second` sorted likewise.
    fn refresh(&mut self, second: &mut Tensor) -> Result<()> {
        let power = self.covariance.f_mm(self.basis)?;
        let estimates = power.f_mul(self.basis)?;
        let estimates = estimates.f_sum_dim_intlist([0_i64].as_slice(), false, power.kind())?;
        let order = estimates.f_argsort(0, true)?;
        second.f_copy_(&second.f_index_select(self.dim, &order)?)?;
        let (basis, _) = Tensor::f_linalg_qr(&power.f_index_select(1, &order)?, "reduced")?;
        Ok(self.basis.f_copy_(&basis)?)
    }
}

/// `Ql^T x Qr`.
fn rotate(sides: &[Side], x: &Tensor) -> Result<Tensor> {
    sides.iter().try_fold(x.shallow_clone(), |x, side| {
        Ok(if side.dim == 0 { side.basis.f_tr()?.f_mm(&x)? } else { x.f_mm(side.basis)? })
    })
}

/// `Ql x Qr^T`.
fn rotate_back(sides: &[Side], x: &Tensor) -> Result<Tensor> {
    sides.iter().try_fold(x.shallow_clone(), |x, side| {
        Ok(if side.dim == 0 { side.basis.f_mm(&x)? } else { x.f_mm(&side.basis.f_tr()?)? })
    })
}

#[cfg(test)]
mod tests;
