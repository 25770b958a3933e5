//! Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2).

use crate::dispatch::SimdLevel;
use crate::elements::{Elements, Scalars};
use crate::error::{Result, require};
use crate::real::Real;
use crate::state::{StateDtype, StateKind, StateSpec, Storage};
use crate::sweep::{ElementRule, sweep};
use crate::tensor::{CheckedTensors, TensorElements};

/// Hyper-parameters of [`Lion`]; the betas are the paper's for language models (section 4.4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LionConfig {
    /// Weight of the old momentum in the direction of a step. Default 0.95.
    pub beta1: f64,
    /// Decay of the momentum, a step. Default 0.98.
    pub beta2: f64,
    /// Decoupled weight decay before the group's multiplier. Default 0.3: the paper takes `lr` 3 to
    /// 10 times lower than AdamW's and `weight_decay` as much higher, so that their product stays
    /// (section 5); this is three times [`crate::AdamWConfig`]'s, for a third of its `lr`.
    pub weight_decay: f64,
    /// How the momentum is stored. Default [`StateDtype::Accumulation`].
    pub state_dtype: StateDtype,
}

impl Default for LionConfig {
    fn default() -> Self {
        let state_dtype = StateDtype::Accumulation;
        Self { beta1: 0.95, beta2: 0.98, weight_decay: 0.3, state_dtype }
    }
}

/// Lion with validated hyper-parameters.
///
/// With `g = grad_scale * grad` and learning rate `lr`:
///
/// ```text
/// u     <- beta1 m + (1 - beta1) g              (the old m)
/// theta <- (1 - lr weight_decay) theta - lr sign(u)
/// m     <- beta2 m + (1 - beta2) g
/// ```
///
/// `sign(0) = 0`, and `sign(NaN)` is NaN as in `jax.numpy`: `torch.sign` gives 0, which would
/// freeze an element for good without a sign of it. Every step moves an element by exactly `lr`
/// besides the decay, so a bf16 parameter without a master would lose steps below
/// `|theta| / 512`. An element whose gradient has become zero goes on moving while its momentum
/// keeps a sign. Worked number: theta = 1, m = 0, g = 0.5, lr = 0.01, weight_decay = 1, defaults
/// else: theta becomes 0.99 - 0.01 = 0.98 and m 0.01.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion {
    config: LionConfig,
}

impl Lion {
    pub(crate) const NAME: &'static str = "lion";
    const STATES: [StateSpec; 1] = Self::stored(Storage::Accumulation);
    const BF16_STATES: [StateSpec; 1] = Self::stored(Storage::Bf16);

    /// The momentum in a storage.
    pub(crate) const fn stored(storage: Storage) -> [StateSpec; 1] {
        [StateSpec::new(StateKind::FirstMoment, storage)]
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: LionConfig) -> Result<Self> {
        let LionConfig { beta1, beta2, weight_decay, .. } = config;
        let fraction = 0.0..1.0;
        require(fraction.contains(&beta1), "optim.betas[0]", beta1, "0 <= betas[0] < 1", 0.95)?;
        require(fraction.contains(&beta2), "optim.betas[1]", beta2, "0 <= betas[1] < 1", 0.98)?;
        require(
            weight_decay >= 0.0 && weight_decay.is_finite(),
            "optim.weight_decay",
            weight_decay,
            "0 <= weight_decay < inf",
            0.3,
        )?;
        Ok(Self { config })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &LionConfig {
        &self.config
    }

    /// The numbers of one step, computed in `f64` and rounded once.
    pub(crate) fn step<T: Real>(&self, scalars: &Scalars) -> LionStep<T> {
        let LionConfig { beta1, beta2, .. } = self.config;
        LionStep {
            grad_scale: T::from_f64(scalars.grad_scale),
            beta1: T::from_f64(beta1),
            one_minus_beta1: T::from_f64(1.0 - beta1),
            beta2: T::from_f64(beta2),
            one_minus_beta2: T::from_f64(1.0 - beta2),
            decay: T::from_f64(scalars.decay()),
            lr: T::from_f64(scalars.lr),
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
        sweep::<T, _, 1>(level, self.step(scalars), elements);
        Ok(())
    }

    pub(crate) fn update_tensor(&self, elements: TensorElements, scalars: &Scalars) -> Result<()> {
        self.step_tensors(elements.checked(Self::NAME, self.state_specs(), scalars)?, scalars)
    }

    /// A step by libtorch operations, whatever the storage.
    pub(crate) fn step_tensors(&self, tensors: CheckedTensors<1>, scalars: &Scalars) -> Result<()> {
        let [mut m] = tensors.load()?;
        let step = self.step::<f64>(scalars);
        let mut grad = tensors.grad.f_mul_scalar(step.grad_scale)?;
        let mut direction = m.f_mul_scalar(step.beta1)?;
        let _ = direction.f_add_(&grad.f_mul_scalar(step.one_minus_beta1)?)?;
        let is_nan = direction.f_isnan()?;
        let _ = direction.f_sign_()?;
        let _ = direction.f_masked_fill_(&is_nan, f64::NAN)?;
        let _ = tensors.master.f_mul_scalar_(step.decay)?;
        let _ = tensors.master.f_sub_(&direction.f_mul_scalar_(step.lr)?)?;
        let _ = m.f_mul_scalar_(step.beta2)?;
        let _ = m.f_add_(&grad.f_mul_scalar_(step.one_minus_beta2)?)?;
        tensors.finish(&[m])
    }
}

/// The numbers of one Lion step.
#[derive(Clone, Copy)]
pub(crate) struct LionStep<T> {
    grad_scale: T,
    beta1: T,
    one_minus_beta1: T,
    beta2: T,
    one_minus_beta2: T,
    decay: T,
    lr: T,
}

impl<T: Real> LionStep<T> {
    /// In the order of the CUDA kernel.
    pub(crate) fn numbers(self) -> [T; 7] {
        let Self { grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr } = self;
        [grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr]
    }
}

impl<T: Real> ElementRule<T, 1> for LionStep<T> {
    #[inline(always)]
    fn element(self, master: T, grad: T, [m]: [T; 1]) -> (T, [T; 1]) {
        let grad = self.grad_scale * grad;
        let u = self.beta1 * m + self.one_minus_beta1 * grad;
        let minus_one = T::ZERO - T::ONE;
        let negative_or_self = if u < T::ZERO { minus_one } else { u };
        // Zero and NaN are neither below nor above zero and pass through.
        let sign = if u > T::ZERO { T::ONE } else { negative_or_self };
        let master = master * self.decay - self.lr * sign;
        (master, [self.beta2 * m + self.one_minus_beta2 * grad])
    }
}

#[cfg(test)]
mod tests;
