//! From the plan's words to the rooms' own types: what stays the same from step to step.

use grove_optim::{
    AdamW8bitConfig, AdamWConfig, Decay, Groups, Lion8bitConfig, LionConfig, RuleConfig,
    Schedule as LrSchedule, ScheduleConfig, StateDtype,
};

use grove_parallel::{Assignment, Collective};
use tch::Device;

use crate::config::{
    self, Group, GroupPlan, Home, Phase, Plan, Recompute as Wanted, Reduction, Rule, Schedule,
    StageSchedule,
};
use crate::error::Error;
use crate::model::block::Recompute;
use crate::model::compute::Compute;
use crate::model::decoder::{Decoder, RunOptions};
use crate::sharding::{Placement, Sharding, Stage, Sums};
use crate::state::RunState;
use crate::step::Recipe;

/// The recipe of a plan for one of `degree` ranks.
///
/// # Errors
/// If the optimizer refuses a hyper-parameter.
pub fn recipe(plan: &Plan, compute: Compute, degree: usize) -> Result<Recipe, Error> {
    let (schedule_steps, schedule_shift) = schedule_span(plan);
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
        schedule: LrSchedule::new(schedule, schedule_steps)?,
        schedule_shift,
        clip_norm: plan.optim.clip_norm,
        seed: plan.seed,
        assignment: Assignment::new(plan.batch.micro_batches as usize, degree)?,
    })
}

/// The update rule of a plan.
///
/// # Errors
/// If it refuses a hyper-parameter.
pub fn rule_of(plan: &Plan) -> Result<grove_optim::Rule, Error> {
    Ok(rule(plan).build()?)
}

/// The steps of the schedule, and what is added to a step for its place in it: where a stage takes
/// it up anew, it spans the steps that are left.
fn schedule_span(plan: &Plan) -> (u64, i64) {
    let steps = plan.run.steps;
    match plan.phase {
        None => (steps, 0),
        Some(Phase { from_step, schedule: StageSchedule::Rewind }) => {
            let warmup = plan.schedule.warmup_steps();
            (steps - from_step + warmup, warmup as i64 - from_step as i64)
        }
        Some(Phase { from_step, .. }) => (steps - from_step, -(from_step as i64)),
    }
}

/// What a plan shards over the ranks, and which part this rank has.
pub fn placement(plan: &Plan, collective: &dyn Collective) -> Placement {
    let (degree, rank) = (collective.degree(), collective.rank());
    let stage = match plan.parallel.zero {
        0 => Stage::Nothing,
        1 => Stage::Optimizer,
        2 => Stage::Gradients,
        _ => Stage::Parameters,
    };
    let sums = match plan.parallel.reduction {
        Reduction::Exact => Sums::Exact,
        Reduction::Fast => Sums::Fast,
    };
    let shard_degree = match (stage, plan.parallel.shard_degree) {
        (Stage::Nothing, _) => 1,
        (_, 0) => degree,
        (_, shard_degree) => shard_degree,
    };
    let keep_numel = plan.parallel.keep_gathered_numel;
    Placement { stage, sums, degree, rank, shard_degree, keep_numel }
}

/// The buffers of a run on this rank, zeroed.
///
/// # Errors
/// If the model's parameters do not make a layout.
pub fn allocate(plan: &Plan, recipe: &Recipe, sharding: &Sharding<'_>) -> Result<RunState, Error> {
    let Recipe { compute, model, rule, .. } = recipe;
    let home = match plan.memory.optimizer {
        Home::Device => compute.device,
        Home::Host => Device::Cpu,
    };
    Ok(RunState::allocate(compute, model.units(), rule, (&sharding.placement, home))?)
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
        Rule::AdamW { betas: [beta1, beta2], eps, state_dtype } => {
            let state_dtype = state_dtype_of(state_dtype);
            RuleConfig::AdamW(AdamWConfig { beta1, beta2, eps, weight_decay, state_dtype })
        }
        Rule::Lion { betas: [beta1, beta2], state_dtype } => {
            let state_dtype = state_dtype_of(state_dtype);
            RuleConfig::Lion(LionConfig { beta1, beta2, weight_decay, state_dtype })
        }
        Rule::AdamW8bit { betas: [beta1, beta2], eps } => {
            RuleConfig::AdamW8bit(AdamW8bitConfig { beta1, beta2, eps, weight_decay })
        }
        Rule::Lion8bit { betas: [beta1, beta2] } => {
            RuleConfig::Lion8bit(Lion8bitConfig { beta1, beta2, weight_decay })
        }
    }
}

fn state_dtype_of(wanted: config::StateDtype) -> StateDtype {
    match wanted {
        config::StateDtype::Master => StateDtype::Accumulation,
        config::StateDtype::Bf16 => StateDtype::Bf16,
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
