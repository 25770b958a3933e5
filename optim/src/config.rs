//! `[optim]`: everything a run's file says to this room.

use crate::error::{Result, require};
use crate::group::Groups;
use crate::rule::{Rule, RuleConfig};
use crate::schedule::{Schedule, ScheduleConfig};
use serde::{Deserialize, Serialize};

/// The `[optim]` table of a run's file.
///
/// ```toml
/// [optim]
/// max_grad_norm = 1.0
/// rule = { name = "adamw", weight_decay = 0.1 }
/// schedule = { lr = 6e-4, warmup_steps = 100, decay = { kind = "cosine", final_ratio = 0.1 } }
/// groups.norm.lr_multiplier = 1.0
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The update rule; must be chosen.
    pub rule: RuleConfig,
    /// The learning rate over the run; must be chosen.
    pub schedule: ScheduleConfig,
    /// Global L2 norm that gradients are clipped to. Default 1; a huge value, say 1e30, is none.
    #[serde(default = "default_max_grad_norm")]
    pub max_grad_norm: f64,
    /// What differs by role.
    #[serde(default)]
    pub groups: Groups,
}

fn default_max_grad_norm() -> f64 {
    1.0
}

impl Config {
    /// Checks every value and resolves the two parts that need it, for a run of `steps` steps.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] or [`crate::Error::ScheduleTooLong`].
    pub fn build(&self, steps: u64) -> Result<(Rule, Schedule)> {
        let max_norm = self.max_grad_norm;
        let holds = max_norm > 0.0 && max_norm.is_finite();
        require(holds, "max_grad_norm", max_norm, "0 < max_grad_norm < inf", 1.0)?;
        self.groups.validate()?;
        Ok((self.rule.build()?, Schedule::new(self.schedule, steps)?))
    }
}

#[cfg(test)]
mod tests;
