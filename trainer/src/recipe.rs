//! From the plan's words to the rooms' own types: what stays the same from step to step.

use grove_optim::{
    AdamWConfig, Decay, Groups, LionConfig, RuleConfig, Schedule as LrSchedule, ScheduleConfig,
};

use crate::config::{Group, GroupPlan, Plan, Recompute as Wanted, Rule, Schedule};
use crate::error::Error;
use crate::model::block::Recompute;
use crate::model::compute::Compute;
use crate::model::decoder::{Decoder, RunOptions};
use crate::step::Recipe;

/// The recipe of a plan for one of `degree` ranks.
///
/// # Errors
/// If the optimizer refuses a hyper-parameter.
pub fn recipe(plan: &Plan, compute: Compute, degree: usize) -> Result<Recipe, Error> {
    let model = Decoder::new(&compute, &plan.model, run_options(plan));
    let schedule = ScheduleConfig {
        lr: plan.optim.lr,
        warmup_steps: plan.schedule.warmup_steps(),
        decay: decay(plan),
    };
    Ok(Recipe {
        model,
        compute,
        rule: rule(plan).build()?,
        groups: groups(plan),
        schedule: LrSchedule::new(schedule, plan.run.steps)?,
        clip_norm: plan.optim.clip_norm,
        micro_batches: plan.batch.micro_batches as usize / degree,
    })
}

fn run_options(plan: &Plan) -> RunOptions {
    RunOptions {
        sequence_length: plan.batch.sequence_length,
        recompute: match plan.memory.recompute {
            Wanted::None => Recompute::None,
            Wanted::Elementwise => Recompute::Elementwise,
            Wanted::Block => Recompute::Block,
        },
        logits_rows: plan.memory.logits_rows,
    }
}

fn rule(plan: &Plan) -> RuleConfig {
    let weight_decay = plan.optim.weight_decay;
    match plan.optim.rule {
        Rule::AdamW { betas: [beta1, beta2], eps } => {
            RuleConfig::AdamW(AdamWConfig { beta1, beta2, eps, weight_decay })
        }
        Rule::Lion { betas: [beta1, beta2] } => {
            RuleConfig::Lion(LionConfig { beta1, beta2, weight_decay })
        }
    }
}

fn decay(plan: &Plan) -> Decay {
    match plan.schedule {
        Schedule::Constant { .. } => Decay::Constant,
        Schedule::Cosine { final_ratio, .. } => Decay::Cosine { final_ratio },
        Schedule::Linear { final_ratio, .. } => Decay::Linear { final_ratio },
        Schedule::Wsd { final_ratio, cooldown_fraction, .. } => {
            Decay::Wsd { final_ratio, cooldown_fraction }
        }
    }
}

fn groups(plan: &Plan) -> Groups {
    let mut groups = Groups::default();
    for (name, group) in [
        (Group::Matrix, &mut groups.matrix),
        (Group::Embedding, &mut groups.embedding),
        (Group::Norm, &mut groups.norm),
        (Group::Bias, &mut groups.bias),
        (Group::Head, &mut groups.head),
    ] {
        if let Some(&GroupPlan { lr_multiplier, weight_decay_multiplier }) =
            plan.optim.groups.get(&name)
        {
            group.lr_multiplier = lr_multiplier;
            group.weight_decay_multiplier = weight_decay_multiplier.unwrap_or(0.0);
        }
    }
    groups
}
