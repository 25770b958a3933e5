//! Lion with an 8-bit momentum (Dettmers et al. 2021, arXiv:2110.02861), as bitsandbytes'
//! `Lion8bit`.

use crate::dispatch::SimdLevel;
use crate::elements::{Elements, Scalars};
use crate::error::Result;
use crate::lion::{Lion, LionConfig, LionStep};
use crate::real::Real;
use crate::state::{MIN_QUANTIZED_ELEMENTS, StateDtype, StateKind, StateSpec, Storage};
use crate::sweep::sweep;
use crate::tensor::TensorElements;

/// Hyper-parameters of [`Lion8bit`]; ranges and defaults are those of [`LionConfig`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion8bitConfig {
    /// Weight of the old momentum in the direction of a step. Default 0.95.
    pub beta1: f64,
    /// Decay of the momentum, a step. Default 0.98.
    pub beta2: f64,
    /// Decoupled weight decay before the group's multiplier. Default 0.3.
    pub weight_decay: f64,
}

impl Default for Lion8bitConfig {
    fn default() -> Self {
        let LionConfig { beta1, beta2, weight_decay, .. } = LionConfig::default();
        Self { beta1, beta2, weight_decay }
    }
}

/// Lion with a quantized momentum and validated hyper-parameters.
///
/// The formula is that of [`Lion`], decay first; the momentum is read as signed code times scale,
/// and quantized again after the update ([`crate::CodeBook::quantize`]). What [`crate::AdamW8bit`]
/// says of small parameters and of non-finite gradients holds here too. Worked number: as
/// [`Lion`]'s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion8bit {
    config: Lion8bitConfig,
    full: Lion,
}

impl Lion8bit {
    pub(crate) const NAME: &'static str = "lion_8bit";
    const FULL: [StateSpec; 1] = Lion::stored(Storage::Accumulation);
    const QUANTIZED: [StateSpec; 2] = [
        StateSpec::new(StateKind::FirstMoment, Storage::Codes),
        StateSpec::new(StateKind::FirstMomentScale, Storage::BlockScale),
    ];

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: Lion8bitConfig) -> Result<Self> {
        let Lion8bitConfig { beta1, beta2, weight_decay } = config;
        let state_dtype = StateDtype::Accumulation;
        let full = Lion::new(LionConfig { beta1, beta2, weight_decay, state_dtype })?;
        Ok(Self { config, full })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Lion8bitConfig {
        &self.config
    }

    /// The numbers of one step.
    pub(crate) fn step<T: Real>(&self, scalars: &Scalars) -> LionStep<T> {
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
        sweep::<T, _, 1>(level, self.step(scalars), elements);
        Ok(())
    }

    pub(crate) fn update_tensor(&self, elements: TensorElements, scalars: &Scalars) -> Result<()> {
        let specs = Self::specs(elements.has_codes());
        self.full.step_tensors(elements.checked(Self::NAME, specs, scalars)?, scalars)
    }
}

#[cfg(test)]
mod tests;
