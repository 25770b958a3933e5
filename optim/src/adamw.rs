//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101,
//! algorithm 2; Adam is Kingma and Ba 2015, arXiv:1412.6980, algorithm 1).

use crate::dispatch::SimdLevel;
use crate::elements::{Elements, Scalars};
use crate::error::{Result, require};
use crate::real::Real;
use crate::state::{StateDtype, StateKind, StateSpec, Storage};
use crate::sweep::{ElementRule, sweep};
use crate::tensor::TensorElements;
use tch::Tensor;

/// Hyper-parameters of [`AdamW`]; the defaults are those common for language models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment, a step; averages over about `1 / (1 - beta1)` steps. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment, a step. Default 0.95.
    pub beta2: f64,
    /// Added to the root of the bias-corrected second moment, in units of the gradient. Default
    /// 1e-8. Zero is refused: an element that never saw a gradient would become 0 / 0.
    pub eps: f64,
    /// Decoupled weight decay before the group's multiplier: a step takes the fraction
    /// `lr * weight_decay` off the parameter. Default 0.1.
    pub weight_decay: f64,
    /// How both moments are stored. Default [`StateDtype::Accumulation`].
    pub state_dtype: StateDtype,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        let state_dtype = StateDtype::Accumulation;
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, state_dtype }
    }
}

/// AdamW with validated hyper-parameters.
///
/// With `g = grad_scale * grad`, update number `t` (from 1) and learning rate `lr`:
///
/// ```text
/// m     <- beta1 m + (1 - beta1) g
/// v     <- beta2 v + (1 - beta2) g^2
/// theta <- (1 - lr weight_decay) theta
/// theta <- theta - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
/// ```
///
/// This is the order of `torch.optim.AdamW`: decay first, `eps` outside the bias-corrected root.
/// Worked number: theta = 1, g = 0.5, t = 1, lr = 0.1, defaults else. m = 0.05, v = 0.0125; both
/// corrections undo the start at zero, so the step is 0.1 * 0.5 / (0.5 + 1e-8), and theta becomes
/// 0.99 - 0.1 = 0.89 (to 2e-9).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    config: AdamWConfig,
}

impl AdamW {
    pub(crate) const NAME: &'static str = "adamw";
    const STATES: [StateSpec; 2] = Self::stored(Storage::Accumulation);
    const BF16_STATES: [StateSpec; 2] = Self::stored(Storage::Bf16);

    /// Both moments in one storage.
    pub(crate) const fn stored(storage: Storage) -> [StateSpec; 2] {
        [
            StateSpec::new(StateKind::FirstMoment, storage),
            StateSpec::new(StateKind::SecondMoment, storage),
        ]
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: AdamWConfig) -> Result<Self> {
        let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = config;
        let fraction = 0.0..1.0;
        require(fraction.contains(&beta1), "optim.betas[0]", beta1, "0 <= betas[0] < 1", 0.9)?;
        require(fraction.contains(&beta2), "optim.betas[1]", beta2, "0 <= betas[1] < 1", 0.95)?;
        // Below 1e-30 it would soon be zero in f32, see the field.
        require((1e-30..1.0).contains(&eps), "optim.eps", eps, "1e-30 <= eps < 1", 1e-8)?;
        require(
            weight_decay >= 0.0 && weight_decay.is_finite(),
            "optim.weight_decay",
            weight_decay,
            "0 <= weight_decay < inf",
            0.1,
        )?;
        Ok(Self { config })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &AdamWConfig {
        &self.config
    }

    /// The numbers of one step, computed in `f64` and rounded once.
    pub(crate) fn step<T: Real>(&self, scalars: &Scalars) -> AdamWStep<T> {
        let AdamWConfig { beta1, beta2, eps, .. } = self.config;
        let step = scalars.step as f64;
        AdamWStep {
            grad_scale: T::from_f64(scalars.grad_scale),
            beta1: T::from_f64(beta1),
            one_minus_beta1: T::from_f64(1.0 - beta1),
            beta2: T::from_f64(beta2),
            one_minus_beta2: T::from_f64(1.0 - beta2),
            decay: T::from_f64(scalars.decay()),
            step_size: T::from_f64(scalars.lr / (1.0 - beta1.powf(step))),
            inverse_root_correction: T::from_f64(1.0 / (1.0 - beta2.powf(step)).sqrt()),
            eps: T::from_f64(eps),
        }
    }

    /// The states that it keeps.
    pub(crate) fn state_specs(&self) -> &'static [StateSpec] {
        match self.config.state_dtype {
            StateDtype::Accumulation => &Self::STATES,
            StateDtype::Bf16 => &Self::BF16_STATES,
        }
    }

    pub(crate) fn update<T: Real>(
        &self,
        level: SimdLevel,
        elements: Elements<T>,
        scalars: &Scalars,
    ) -> Result<()> {
        let elements = elements.checked(Self::NAME, self.state_specs(), scalars)?;
        sweep::<T, _, 2>(level, self.step(scalars), elements);
        Ok(())
    }

    pub(crate) fn update_tensor(&self, elements: TensorElements, scalars: &Scalars) -> Result<()> {
        let tensors = elements.checked(Self::NAME, self.state_specs(), scalars)?;
        let mut states = tensors.load()?;
        let step = self.step::<f64>(scalars);
        let (numerator, denominator) = step.advance_tensors(tensors.grad, &mut states)?;
        let _ = tensors.master.f_mul_scalar_(step.decay)?;
        let _ = tensors.master.f_addcdiv_(&numerator, &denominator)?;
        tensors.finish(&states)
    }
}

/// The numbers of one AdamW step.
#[derive(Clone, Copy)]
pub(crate) struct AdamWStep<T> {
    grad_scale: T,
    beta1: T,
    one_minus_beta1: T,
    beta2: T,
    one_minus_beta2: T,
    decay: T,
    step_size: T,
    inverse_root_correction: T,
    eps: T,
}

impl<T: Real> AdamWStep<T> {
    /// The new moments, and what they take off the parameter.
    #[inline(always)]
    pub(crate) fn advance(self, grad: T, [m, v]: [T; 2]) -> (T, [T; 2]) {
        let grad = self.grad_scale * grad;
        let m = self.beta1 * m + self.one_minus_beta1 * grad;
        let v = self.beta2 * v + self.one_minus_beta2 * grad * grad;
        let denominator = v.sqrt() * self.inverse_root_correction + self.eps;
        (self.step_size * m / denominator, [m, v])
    }

    /// In the order of the CUDA kernel.
    pub(crate) fn numbers(self) -> [T; 9] {
        [
            self.grad_scale,
            self.beta1,
            self.one_minus_beta1,
            self.beta2,
            self.one_minus_beta2,
            self.decay,
            self.step_size,
            self.inverse_root_correction,
            self.eps,
        ]
    }

    /// What a step multiplies the parameter by.
    #[inline(always)]
    pub(crate) fn decay(self) -> T {
        self.decay
    }
}

impl AdamWStep<f64> {
    /// Advances the moments in place, and returns the fraction to add to the parameter.
    pub(crate) fn advance_tensors(
        &self,
        grad: &Tensor,
        [m, v]: &mut [Tensor; 2],
    ) -> Result<(Tensor, Tensor)> {
        let mut grad = grad.f_mul_scalar(self.grad_scale)?;
        let _ = v.f_mul_scalar_(self.beta2)?;
        let _ = v.f_addcmul_(&grad.f_mul_scalar(self.one_minus_beta2)?, &grad)?;
        let _ = m.f_mul_scalar_(self.beta1)?;
        let _ = m.f_add_(&grad.f_mul_scalar_(self.one_minus_beta1)?)?;
        drop(grad);
        let mut denominator = v.f_sqrt()?;
        let _ = denominator.f_mul_scalar_(self.inverse_root_correction)?;
        let _ = denominator.f_add_scalar_(self.eps)?;
        Ok((m.f_mul_scalar(-self.step_size)?, denominator))
    }
}

impl<T: Real> ElementRule<T, 2> for AdamWStep<T> {
    #[inline(always)]
    fn element(self, master: T, grad: T, moments: [T; 2]) -> (T, [T; 2]) {
        let (taken, moments) = self.advance(grad, moments);
        (master * self.decay - taken, moments)
    }
}

#[cfg(test)]
mod tests;
