//! The masks under which a stage's model rises from the one before it.

use serde::{Deserialize, Serialize};

use super::{DepthGrowth, GrowthStage, Plan};
use crate::model::config::ModelConfig;

/// What a stage has added under masks, and when they rise; found from the stage and the models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RampPlan {
    /// Steps done when the masks are 0.
    pub from_step: u64,
    /// Steps in which they rise to 1.
    pub steps: u64,
    /// The added blocks.
    pub blocks: Vec<usize>,
    /// Heads before the added ones.
    pub heads: usize,
    /// Neurons before the added ones.
    pub neurons: usize,
}

impl RampPlan {
    /// The masks of a stage that grows `before`; none if it has none.
    pub(super) fn of(before: &ModelConfig, stage: &GrowthStage) -> Option<Self> {
        let (old, new) = (before.spec(), stage.model.spec());
        let blocks = stage.growth.depth.added_blocks(old.num_layers, new.num_layers);
        (stage.growth.mask_steps > 0).then_some(Self {
            from_step: stage.at_step,
            steps: stage.growth.mask_steps,
            blocks,
            heads: old.num_heads,
            neurons: old.intermediate_size,
        })
    }
}

impl DepthGrowth {
    /// Which of `new` blocks are not the `old` ones themselves.
    pub fn added_blocks(self, old: usize, new: usize) -> Vec<usize> {
        let is_added = |block: usize| match self {
            Self::Stack => block >= old,
            // Each of the last new - old has one behind it.
            Self::Lemon => {
                let alone = (2 * old).saturating_sub(new);
                block >= alone && (block - alone) % 2 == 1
            }
            Self::Interpolate | Self::ZeroInsert | Self::IdentityInsert => {
                block > 0 && block * old / new == (block - 1) * old / new
            }
        };
        (0..new).filter(|&block| is_added(block)).collect()
    }
}

impl Plan {
    /// The step at which the masks of this stage are 1, if they are not after `step` steps.
    pub fn masked_until(&self, step: u64) -> Option<u64> {
        let ramp = self.ramp.as_ref()?;
        let end = ramp.from_step + ramp.steps;
        (step < end).then_some(end)
    }
}
