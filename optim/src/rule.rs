//! The closed set of update rules, and what a checkpoint needs to know of them.

use crate::adamw::{AdamW, AdamWConfig};
use crate::adamw_8bit::{AdamW8bit, AdamW8bitConfig};
use crate::dispatch::SimdLevel;
use crate::elements::{Elements, Scalars, StepNumbers};
use crate::error::Result;
use crate::group::Group;
use crate::lion::{Lion, LionConfig};
use crate::lion_8bit::{Lion8bit, Lion8bitConfig};
use crate::real::Real;
use crate::schedule_free::{ScheduleFree, ScheduleFreeConfig};
use crate::sophia::{Sophia, SophiaConfig};
use crate::state::StateSpec;
use crate::tensor::TensorElements;

/// Which rule, with its hyper-parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RuleConfig {
    /// See [`AdamW`].
    AdamW(AdamWConfig),
    /// See [`Lion`].
    Lion(LionConfig),
    /// See [`Sophia`].
    Sophia(SophiaConfig),
    /// See [`ScheduleFree`].
    ScheduleFree(ScheduleFreeConfig),
    /// See [`AdamW8bit`].
    AdamW8bit(AdamW8bitConfig),
    /// See [`Lion8bit`].
    Lion8bit(Lion8bitConfig),
}

impl RuleConfig {
    /// The rule, once every hyper-parameter is in its range.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`], naming the key, the value and the range.
    pub fn build(&self) -> Result<Rule> {
        Ok(match *self {
            Self::AdamW(config) => Rule::AdamW(AdamW::new(config)?),
            Self::Lion(config) => Rule::Lion(Lion::new(config)?),
            Self::Sophia(config) => Rule::Sophia(Sophia::new(config)?),
            Self::ScheduleFree(config) => Rule::ScheduleFree(ScheduleFree::new(config)?),
            Self::AdamW8bit(config) => Rule::AdamW8bit(AdamW8bit::new(config)?),
            Self::Lion8bit(config) => Rule::Lion8bit(Lion8bit::new(config)?),
        })
    }
}

/// An element-wise update rule with validated hyper-parameters; see each for its formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Loshchilov and Hutter 2019.
    AdamW(AdamW),
    /// Chen et al. 2023.
    Lion(Lion),
    /// Liu et al. 2023.
    Sophia(Sophia),
    /// Defazio et al. 2024.
    ScheduleFree(ScheduleFree),
    /// AdamW with the states of Dettmers et al. 2021.
    AdamW8bit(AdamW8bit),
    /// Lion with the state of Dettmers et al. 2021.
    Lion8bit(Lion8bit),
}

impl Rule {
    /// The name in configurations and checkpoints, which never changes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AdamW(_) => AdamW::NAME,
            Self::Lion(_) => Lion::NAME,
            Self::Sophia(_) => Sophia::NAME,
            Self::ScheduleFree(_) => ScheduleFree::NAME,
            Self::AdamW8bit(_) => AdamW8bit::NAME,
            Self::Lion8bit(_) => Lion8bit::NAME,
        }
    }

    /// The state buffers that the rule keeps for a parameter of `numel` elements, in the order that
    /// an update takes them.
    ///
    /// Only quantized rules look at `numel`: below [`crate::MIN_QUANTIZED_ELEMENTS`] the same kinds
    /// have full storage. A buffer of one kind and storage for many parameters then need only hold
    /// those that have it.
    pub fn state_specs(&self, numel: usize) -> &'static [StateSpec] {
        match self {
            Self::AdamW(rule) => rule.state_specs(),
            Self::Lion(rule) => rule.state_specs(),
            Self::Sophia(_) => &Sophia::STATES,
            Self::ScheduleFree(_) => &ScheduleFree::STATES,
            Self::AdamW8bit(_) => AdamW8bit::state_specs(numel),
            Self::Lion8bit(_) => Lion8bit::state_specs(numel),
        }
    }

    /// Decoupled weight decay before a group's multiplier.
    pub fn weight_decay(&self) -> f64 {
        match self {
            Self::AdamW(rule) => rule.config().weight_decay,
            Self::Lion(rule) => rule.config().weight_decay,
            Self::Sophia(rule) => rule.config().weight_decay,
            Self::ScheduleFree(rule) => rule.config().weight_decay,
            Self::AdamW8bit(rule) => rule.config().weight_decay,
            Self::Lion8bit(rule) => rule.config().weight_decay,
        }
    }

    /// The numbers of a step for one group.
    pub fn scalars(&self, group: &Group, step: &StepNumbers) -> Scalars {
        Scalars {
            lr: step.lr * group.lr_multiplier,
            weight_decay: self.weight_decay() * group.weight_decay_multiplier,
            grad_scale: step.grad_scale,
            step: step.step,
            averaging_weight: step.averaging_weight,
            rounding_seed: step.rounding_seed,
        }
    }

    /// Updates one range in one pass over memory, on the calling thread.
    ///
    /// Arithmetic is in `T`, with the per-step numbers computed in `f64` and rounded once. No
    /// multiply-add is fused, so an element gets the same bits wherever a range is cut and on
    /// every processor. A non-finite gradient element makes its own parameter and state
    /// non-finite and no other; the caller looks at the gradient norm first.
    ///
    /// # Shapes
    /// Every buffer of `elements`: `[n]`; states as [`Rule::state_specs`] says, in that order. A
    /// quantized rule takes both forms, quantized and full.
    ///
    /// # Errors
    /// [`crate::Error::Scalar`], [`crate::Error::Length`], [`crate::Error::StateCount`],
    /// [`crate::Error::StateStorage`] or [`crate::Error::WithinBlock`], before anything is written.
    pub fn update<T: Real>(&self, elements: Elements<T>, scalars: &Scalars) -> Result<()> {
        self.update_at(SimdLevel::detect(), elements, scalars)
    }

    /// [`Rule::update`] at a given vector level.
    pub(crate) fn update_at<T: Real>(
        &self,
        level: SimdLevel,
        elements: Elements<T>,
        scalars: &Scalars,
    ) -> Result<()> {
        match self {
            Self::AdamW(rule) => rule.update(level, elements, scalars),
            Self::Lion(rule) => rule.update(level, elements, scalars),
            Self::Sophia(rule) => rule.update(level, elements, scalars),
            Self::ScheduleFree(rule) => rule.update(level, elements, scalars),
            Self::AdamW8bit(rule) => rule.update(level, elements, scalars),
            Self::Lion8bit(rule) => rule.update(level, elements, scalars),
        }
    }

    /// Refuses what [`Rule::update_tensor`] refuses before it writes.
    pub(crate) fn check_tensors(&self, elements: &TensorElements, scalars: &Scalars) -> Result<()> {
        let quantized = elements.has_codes();
        let specs = match self {
            Self::AdamW8bit(_) => AdamW8bit::specs(quantized),
            Self::Lion8bit(_) => Lion8bit::specs(quantized),
            _ => self.state_specs(0),
        };
        elements.check(self.name(), specs, scalars)
    }

    /// The same formula by in-place libtorch operations, for tensors of any device.
    ///
    /// Equal to [`Rule::update`] up to rounding: kernels may fuse multiply-adds, and where that
    /// tips a code or a bf16 value, by one of its steps. Needs one to three temporaries of the size
    /// of `master` at a time, with other states than the master's dtype about ten; quantized states
    /// copy their code book to the device. Nothing is recorded for autograd.
    ///
    /// # Shapes
    /// As [`Rule::update`].
    ///
    /// # Errors
    /// As [`Rule::update`], and [`crate::Error::Tensor`] if libtorch refuses an operation, after
    /// which the tensors are in no defined state.
    pub fn update_tensor(&self, elements: TensorElements, scalars: &Scalars) -> Result<()> {
        tch::no_grad(|| match self {
            Self::AdamW(rule) => rule.update_tensor(elements, scalars),
            Self::Lion(rule) => rule.update_tensor(elements, scalars),
            Self::Sophia(rule) => rule.update_tensor(elements, scalars),
            Self::ScheduleFree(rule) => rule.update_tensor(elements, scalars),
            Self::AdamW8bit(rule) => rule.update_tensor(elements, scalars),
            Self::Lion8bit(rule) => rule.update_tensor(elements, scalars),
        })
    }
}

#[cfg(test)]
mod tests;
