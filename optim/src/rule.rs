//! The closed set of update rules, and what a checkpoint needs to know of them.

use crate::adamw::{AdamW, AdamWConfig};
use crate::elements::{Elements, Scalars};
use crate::error::Result;
use crate::group::Group;
use crate::lion::{Lion, LionConfig};
use crate::real::Real;
use crate::tensor::TensorElements;

/// Which rule, with its hyper-parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RuleConfig {
    /// See [`AdamW`].
    AdamW(AdamWConfig),
    /// See [`Lion`].
    Lion(LionConfig),
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
        })
    }
}

/// What a state buffer holds; one element a parameter element, zero before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateKind {
    /// Moving average of the gradient.
    FirstMoment,
    /// Moving average of the squared gradient.
    SecondMoment,
}

impl StateKind {
    /// The name in checkpoints, which never changes; torch's.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstMoment => "exp_avg",
            Self::SecondMoment => "exp_avg_sq",
        }
    }
}

/// An element-wise update rule with validated hyper-parameters; see each for its formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Loshchilov and Hutter 2019.
    AdamW(AdamW),
    /// Chen et al. 2023.
    Lion(Lion),
}

impl Rule {
    /// The name in configurations and checkpoints, which never changes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AdamW(_) => AdamW::NAME,
            Self::Lion(_) => Lion::NAME,
        }
    }

    /// The state buffers that the rule keeps, in the order that an update takes them.
    pub fn state_kinds(&self) -> &'static [StateKind] {
        match self {
            Self::AdamW(_) => &AdamW::STATE_KINDS,
            Self::Lion(_) => &Lion::STATE_KINDS,
        }
    }

    /// Decoupled weight decay before a group's multiplier.
    pub fn weight_decay(&self) -> f64 {
        match self {
            Self::AdamW(rule) => rule.config().weight_decay,
            Self::Lion(rule) => rule.config().weight_decay,
        }
    }

    /// The numbers of update number `step` (from **1**) for one group; `lr` is the schedule's.
    pub fn scalars(&self, group: &Group, lr: f64, grad_scale: f64, step: u64) -> Scalars {
        Scalars {
            lr: lr * group.lr_multiplier,
            weight_decay: self.weight_decay() * group.weight_decay_multiplier,
            grad_scale,
            step,
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
    /// Every buffer of `elements`: `[n]`; states in the order of [`Rule::state_kinds`].
    ///
    /// # Errors
    /// [`crate::Error::Scalar`], [`crate::Error::Length`] or [`crate::Error::StateCount`], before
    /// anything is written.
    pub fn update<T: Real>(&self, elements: Elements<T>, scalars: &Scalars) -> Result<()> {
        match self {
            Self::AdamW(rule) => rule.update(elements, scalars),
            Self::Lion(rule) => rule.update(elements, scalars),
        }
    }

    /// The same formula by in-place libtorch operations, for tensors of any device.
    ///
    /// Equal to [`Rule::update`] up to rounding: kernels may fuse multiply-adds. Needs one to
    /// three temporaries of the size of `master` at a time. Nothing is recorded for autograd.
    ///
    /// # Shapes
    /// Every tensor of `elements` has the number of elements of `master`.
    ///
    /// # Errors
    /// As [`Rule::update`], and [`crate::Error::Tensor`] if libtorch refuses an operation, after
    /// which the tensors are in no defined state.
    pub fn update_tensor(&self, elements: TensorElements, scalars: &Scalars) -> Result<()> {
        tch::no_grad(|| match self {
            Self::AdamW(rule) => rule.update_tensor(elements, scalars),
            Self::Lion(rule) => rule.update_tensor(elements, scalars),
        })
    }
}

#[cfg(test)]
mod tests;
