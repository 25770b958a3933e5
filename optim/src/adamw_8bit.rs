//! AdamW with 8-bit states (Dettmers et al. 2021, arXiv:2110.02861), as bitsandbytes' `AdamW8bit`.

use crate::adamw::{AdamW, AdamWConfig, AdamWStep};
use crate::dispatch::SimdLevel;
use crate::elements::{Elements, Scalars};
use crate::error::Result;
use crate::real::Real;
use crate::state::{MIN_QUANTIZED_ELEMENTS, StateDtype, StateKind, StateSpec, Storage};
use crate::sweep::{ElementRule, sweep};
use crate::tensor::TensorElements;

/// Hyper-parameters of [`AdamW8bit`]; ranges and defaults are those of [`AdamWConfig`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW8bitConfig {
    /// Decay of the first moment, a step. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment, a step. Default 0.95.
    pub beta2: f64,
    /// Added to the root of the bias-corrected second moment, in units of the gradient. Default
    /// 1e-8. A second moment below 1.6e-7 of its block's largest rounds to zero; an element whose
    /// first moment does not, and that then sees no gradient, is moved by `lr` times that moment
    /// over `eps`. Raise `eps` if rows of an embedding jump.
    pub eps: f64,
    /// Decoupled weight decay before the group's multiplier. Default 0.1.
    pub weight_decay: f64,
}

impl Default for AdamW8bitConfig {
    fn default() -> Self {
        let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = AdamWConfig::default();
        Self { beta1, beta2, eps, weight_decay }
    }
}

/// AdamW with quantized states and validated hyper-parameters.
///
/// Moments are read as code times scale, updated in the master's dtype, used as they are for the
/// step, and quantized again ([`crate::CodeBook::quantize`]: signed codes for the first moment,
/// unsigned for the second). With the moments and the fraction of [`AdamW`]:
///
/// ```text
/// theta <- theta - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
/// theta <- (1 - lr weight_decay) theta
/// ```
///
/// The decay comes **after** the step, as in bitsandbytes' GPU kernels: a difference of
/// `lr^2 weight_decay` to [`AdamW`]. Parameters below [`crate::MIN_QUANTIZED_ELEMENTS`] keep full
/// states, with the same formula. Unlike those kernels, a small negative first moment becomes zero
/// as a positive one does (they take the smallest negative code), and an element with a non-finite
/// gradient becomes NaN, to be seen (they skip it); its states become zero, so that the others of
/// its block stay sound. Worked number: theta = 1, g = 0.5, t = 1, lr = 0.1, defaults else:
/// (1 - 0.1) * 0.99 = 0.891.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW8bit {
    config: AdamW8bitConfig,
    full: AdamW,
}

impl AdamW8bit {
    pub(crate) const NAME: &'static str = "adamw_8bit";
    const FULL: [StateSpec; 2] = AdamW::stored(Storage::Accumulation);
    const QUANTIZED: [StateSpec; 4] = [
        StateSpec::new(StateKind::FirstMoment, Storage::Codes),
        StateSpec::new(StateKind::FirstMomentScale, Storage::BlockScale),
        StateSpec::new(StateKind::SecondMoment, Storage::Codes),
        StateSpec::new(StateKind::SecondMomentScale, Storage::BlockScale),
    ];

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: AdamW8bitConfig) -> Result<Self> {
        let AdamW8bitConfig { beta1, beta2, eps, weight_decay } = config;
        let state_dtype = StateDtype::Accumulation;
        let full = AdamW::new(AdamWConfig { beta1, beta2, eps, weight_decay, state_dtype })?;
        Ok(Self { config, full })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &AdamW8bitConfig {
        &self.config
    }

    /// The numbers of one step.
    pub(crate) fn step<T: Real>(&self, scalars: &Scalars) -> AdamWStep<T> {
        self.full.step(scalars)
    }

    pub(crate) fn state_specs(numel: usize) -> &'static [StateSpec] {
        Self::specs(numel >= MIN_QUANTIZED_ELEMENTS)
    }

    pub(crate) fn specs(quantized: bool) -> &'static [StateSpec] {
        if quantized { &Self::QUANTIZED } else { &Self::FULL }
    }

    pub(crate) fn update<T: Real>(
        &self,
        level: SimdLevel,
        elements: Elements<T>,
        scalars: &Scalars,
    ) -> Result<()> {
        let specs = Self::specs(elements.has_codes());
        let elements = elements.checked(Self::NAME, specs, scalars)?;
        sweep::<T, _, 2>(level, DecayLast(self.step(scalars)), elements);
        Ok(())
    }

    pub(crate) fn update_tensor(&self, elements: TensorElements, scalars: &Scalars) -> Result<()> {
        let specs = Self::specs(elements.has_codes());
        let tensors = elements.checked(Self::NAME, specs, scalars)?;
        let mut states = tensors.load()?;
        let step = self.step::<f64>(scalars);
        let (numerator, denominator) = step.advance_tensors(tensors.grad, &mut states)?;
        let _ = tensors.master.f_addcdiv_(&numerator, &denominator)?;
        let _ = tensors.master.f_mul_scalar_(step.decay())?;
        tensors.finish(&states)
    }
}

/// An AdamW step that decays what the step has left.
#[derive(Clone, Copy)]
struct DecayLast<T>(AdamWStep<T>);

impl<T: Real> ElementRule<T, 2> for DecayLast<T> {
    #[inline(always)]
    fn element(self, master: T, grad: T, moments: [T; 2]) -> (T, [T; 2]) {
        let (taken, moments) = self.0.advance(grad, moments);
        ((master - taken) * self.0.decay(), moments)
    }
}

#[cfg(test)]
mod tests;
