//! The update rule with its groups, and the schedule.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::plan::{Group, GroupPlan, OptimPlan, Rule, Schedule, StateDtype};
use super::super::run_config::{GroupTables, OptimTable, RuleName, ScheduleName, ScheduleTable};
use super::{Problems, Shown, whole};
use crate::model::config::DecoderSpec;

/// The range of `optim.eps` that the optimizer takes.
const EPS: Range<f64> = 1e-30..1.0;

/// The optimizer of an `[optim]` table, for the groups that the model has.
pub(super) fn resolve(
    table: &OptimTable,
    spec: &DecoderSpec,
    problems: &mut Problems,
) -> OptimPlan {
    let wanted = table.rule.unwrap_or(RuleName::AdamW);
    let (rule, lr, weight_decay) = match wanted {
        RuleName::Whole(wanted) => whole::resolve(table, wanted, problems),
        _ => element_wise(table, wanted, problems),
    };
    problems.require_positive("optim.lr", lr, "use a number such as 3e-4");
    problems.require_not_negative("optim.weight_decay", weight_decay, "use 0 for no decay");
    let clip_norm = table.clip_norm.unwrap_or(1.0);
    problems.require_not_negative("optim.clip_norm", clip_norm, "use 0 for no clipping");
    let decays = weight_decay != 0.0 || rule.rest().is_some_and(|rest| rest.weight_decay != 0.0);
    let groups = groups(&table.groups, spec, decays, problems);
    for (group, plan) in &groups {
        // Of what a rule for whole parameters does not take, all but the matrices.
        let (lr, weight_decay, table) = match rule.rest() {
            Some(rest) if *group != Group::Matrix => (rest.lr, rest.weight_decay, "optim.rest"),
            _ => (lr, weight_decay, "optim"),
        };
        let shrink = lr * plan.lr_multiplier;
        let shrink = shrink * weight_decay * plan.weight_decay_multiplier.unwrap_or(0.0);
        problems.require(
            shrink < 1.0,
            &format!("{table}.weight_decay"),
            Shown(weight_decay),
            format!(
                "times {table}.lr = {lr:?} and the multipliers of optim.groups.{} is {shrink:?}, \
                 and a step multiplies weights by 1 - that",
                name(*group)
            ),
            "make the product less than 1",
        );
    }
    OptimPlan { rule, lr, weight_decay, clip_norm, groups }
}

/// A rule that looks at one element at a time, with its learning rate and weight decay.
///
/// Lion's defaults are a third of AdamW's learning rate and three times its decay, so that their
/// product stays (Chen et al. 2023, arXiv:2302.06675, section 5), with the betas of its language
/// models (section 4.4).
fn element_wise(table: &OptimTable, wanted: RuleName, problems: &mut Problems) -> (Rule, f64, f64) {
    let (default_betas, default_lr, default_decay) = match wanted {
        RuleName::AdamW | RuleName::AdamW8bit => ([0.9, 0.95], 3e-4, 0.1),
        RuleName::Lion | RuleName::Lion8bit => ([0.95, 0.98], 1e-4, 0.3),
        RuleName::Whole(_) => unreachable!("these are resolved apart"),
    };
    let betas = table.betas.unwrap_or(default_betas);
    let eps = table.eps.unwrap_or(1e-8);
    problems.require(
        EPS.contains(&eps),
        "optim.eps",
        Shown(eps),
        format!("must be at least {:?} and below {:?}", EPS.start, EPS.end),
        "use a small number such as 1e-8",
    );
    let state_dtype = table.state_dtype.unwrap_or(StateDtype::Master);
    let rule = match wanted {
        RuleName::AdamW => Rule::AdamW { betas, eps, state_dtype },
        RuleName::Lion => Rule::Lion { betas, state_dtype },
        RuleName::AdamW8bit => Rule::AdamW8bit { betas, eps },
        RuleName::Lion8bit => Rule::Lion8bit { betas },
        RuleName::Whole(_) => unreachable!("these are resolved apart"),
    };
    problems.require(
        betas.iter().all(|beta| (0.0..1.0).contains(beta)),
        "optim.betas",
        format!("{betas:?}"),
        "must both be at least 0 and below 1",
        "use numbers such as [0.9, 0.95]",
    );
    let lr = table.lr.unwrap_or(default_lr);
    (rule, lr, table.weight_decay.unwrap_or(default_decay))
}

fn groups(
    tables: &GroupTables,
    spec: &DecoderSpec,
    decays: bool,
    problems: &mut Problems,
) -> BTreeMap<Group, GroupPlan> {
    let all = [
        (Group::Matrix, tables.matrix, 1.0, true),
        (Group::Embedding, tables.embedding, 1.0, true),
        (Group::Norm, tables.norm, 0.0, true),
        (Group::Bias, tables.bias, 0.0, spec.bias),
        (Group::Head, tables.head, 1.0, !spec.tied),
    ];
    let mut groups = BTreeMap::new();
    for (group, table, default_decay, is_there) in all {
        if !is_there {
            continue;
        }
        let lr_multiplier = table.lr_multiplier.unwrap_or(1.0);
        let decay_multiplier = table.weight_decay_multiplier.unwrap_or(default_decay);
        let key = |leaf: &str| format!("optim.groups.{}.{leaf}", name(group));
        let remedy = "use 0 to switch it off, or 1";
        problems.require_not_negative(&key("lr_multiplier"), lr_multiplier, remedy);
        problems.require_not_negative(&key("weight_decay_multiplier"), decay_multiplier, remedy);
        let weight_decay_multiplier = decays.then_some(decay_multiplier);
        groups.insert(group, GroupPlan { lr_multiplier, weight_decay_multiplier });
    }
    groups
}

fn name(group: Group) -> &'static str {
    match group {
        Group::Matrix => "matrix",
        Group::Embedding => "embedding",
        Group::Norm => "norm",
        Group::Bias => "bias",
        Group::Head => "head",
    }
}

/// The schedule of a `[schedule]` table over `steps`, and the steps of its cooldown.
pub(super) fn schedule(
    table: &ScheduleTable,
    steps: u64,
    problems: &mut Problems,
) -> (Schedule, u64) {
    let warmup_steps = table.warmup_steps.unwrap_or(0);
    let (schedule, final_ratio, cooldown_fraction) =
        match table.kind.unwrap_or(ScheduleName::Cosine) {
            ScheduleName::Constant => (Schedule::Constant { warmup_steps }, 0.0, None),
            ScheduleName::Cosine => {
                let final_ratio = table.final_ratio.unwrap_or(0.1);
                (Schedule::Cosine { warmup_steps, final_ratio }, final_ratio, None)
            }
            ScheduleName::Linear => {
                let final_ratio = table.final_ratio.unwrap_or(0.0);
                (Schedule::Linear { warmup_steps, final_ratio }, final_ratio, None)
            }
            ScheduleName::Wsd => {
                let final_ratio = table.final_ratio.unwrap_or(0.0);
                let cooldown_fraction = table.cooldown_fraction.unwrap_or(0.2);
                let wsd = Schedule::Wsd { warmup_steps, final_ratio, cooldown_fraction };
                (wsd, final_ratio, Some(cooldown_fraction))
            }
        };
    problems.require(
        (0.0..=1.0).contains(&final_ratio),
        "schedule.final_ratio",
        Shown(final_ratio),
        "must be at least 0 and at most 1",
        "use 0 to end at a learning rate of 0",
    );
    let cooldown_steps = cooldown_fraction.map_or(0, |fraction| {
        problems.require(
            fraction > 0.0 && fraction <= 1.0,
            "schedule.cooldown_fraction",
            Shown(fraction),
            "must be above 0 and at most 1",
            "use a part such as 0.2, or schedule.kind = \"constant\" for no cooldown",
        );
        ((fraction * steps as f64).round() as u64).max(1)
    });
    let cooldown = if cooldown_steps > 0 {
        format!(" - {cooldown_steps} steps of cooldown")
    } else {
        String::new()
    };
    problems.require(
        warmup_steps.saturating_add(cooldown_steps) <= steps,
        "schedule.warmup_steps",
        warmup_steps,
        format!("is above run.steps = {steps}{cooldown}"),
        "warm up for fewer steps, or train for more",
    );
    (schedule, cooldown_steps)
}
