//! Adam in other coordinates than the parameter's own, which `GaLore` and SOAP share.

use tch::Tensor;

use super::ranges::{ROOT_EPS, require_beta, require_eps};
use crate::error::Result;

/// The hyper-parameters of Adam inside a rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct SubspaceAdam {
    /// Decay of the first moment.
    pub(super) beta1: f64,
    /// Decay of the second moment.
    pub(super) beta2: f64,
    /// Added to the root of the second moment as it is, before the bias correction.
    pub(super) eps: f64,
}

impl SubspaceAdam {
    /// Checks the ranges; `usual` are the rule's own defaults.
    pub(super) fn require(&self, usual: Self) -> Result<()> {
        require_beta("optim.betas[0]", self.beta1, usual.beta1)?;
        require_beta("optim.betas[1]", self.beta2, usual.beta2)?;
        require_eps("optim.eps", self.eps, ROOT_EPS, usual.eps)
    }

    /// Advances both moments, and returns
    /// `sqrt(1 - beta2^step) / (1 - beta1^step) m / (sqrt(v) + eps)`.
    pub(super) fn direction(
        &self,
        grad: &Tensor,
        first: &mut Tensor,
        second: &mut Tensor,
        step: u64,
    ) -> Result<Tensor> {
        let Self { beta1, beta2, eps } = *self;
        let _ = first.f_lerp_(grad, 1.0 - beta1)?;
        let _ = second.f_mul_scalar_(beta2)?;
        let _ = second.f_addcmul_(&grad.f_mul_scalar(1.0 - beta2)?, grad)?;
        let mut direction = second.f_sqrt()?;
        let _ = direction.f_add_scalar_(eps)?;
        let _ = direction.f_reciprocal_()?;
        let _ = direction.f_mul_(first)?;
        let step = step as f64;
        let correction = (1.0 - beta2.powf(step)).sqrt() / (1.0 - beta1.powf(step));
        let _ = direction.f_mul_scalar_(correction)?;
        Ok(direction)
    }
}
