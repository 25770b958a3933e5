//! The masks under which a stage's model rises from the one before it.

use super::{DepthGrowth, GrowthPlan, Plan, WidthGrowth};
use crate::model::config::ModelConfig;
use crate::model::folding::Folding;
use crate::model::ramp::Ramp;

impl GrowthPlan {
    /// The masks over what a growth after `from_step` steps adds to a model; none if it has none.
    pub fn ramp(&self, from_step: u64, models: [&ModelConfig; 2]) -> Option<Ramp> {
        let [old, new] = models.map(ModelConfig::spec);
        let blocks = self.depth.added_blocks(old.num_layers, new.num_layers);
        // Copies of what there was keep the function by themselves.
        let widths = if self.width == WidthGrowth::Random { &old } else { &new };
        (self.mask_steps > 0).then_some(Ramp {
            from_step,
            steps: self.mask_steps,
            blocks,
            heads: widths.num_heads,
            neurons: widths.intermediate_size,
            channels: widths.hidden_size,
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

    /// What the masks after `step` steps make of the model's weights in Hugging Face files; none where
    /// all are 1.
    pub fn folding(&self, step: u64) -> Option<Folding> {
        Folding::new(&self.model, self.ramp.as_ref()?, step)
    }
}
