//! The update rule with its groups.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::plan::{Group, GroupPlan, OptimPlan, Rule, RuleName, decays};
use super::super::run_config::{GroupTables, OptimTable};
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
    let mut rule = rule(wanted, table, problems);
    let (default_lr, default_decay) = wanted.usual_lr_and_decay();
    let lr = table.lr.unwrap_or(whole::default_lr(table, default_lr));
    problems.require_positive("optim.lr", lr, "use a number such as 3e-4");
    let weight_decay = table.weight_decay.unwrap_or(default_decay);
    problems.require_not_negative("optim.weight_decay", weight_decay, "use 0 for no decay");
    whole::fill(&mut rule, table, (lr, weight_decay));
    whole::check(&rule, weight_decay, problems);
    let clip_norm = table.clip_norm.unwrap_or(1.0);
    problems.require_not_negative("optim.clip_norm", clip_norm, "use 0 for no clipping");
    let decays = decays(&rule, weight_decay);
    let groups = groups(&table.groups, (wanted, decays), spec, problems);
    for (group, plan) in &groups {
        // A rule for matrices leaves the others to AdamW.
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
    one_estimate(wanted, &groups, problems);
    let on_change = table.on_change.unwrap_or_default();
    OptimPlan { rule, lr, weight_decay, clip_norm, on_change, groups }
}

/// The rule of a table: its literature's numbers, with those that the table has in their place.
fn rule(wanted: RuleName, table: &OptimTable, problems: &mut Problems) -> Rule {
    let mut rule = wanted.usual();
    match &mut rule {
        Rule::AdamW { betas, eps, state_dtype } => {
            take(betas, table.betas);
            take(eps, table.eps);
            take(state_dtype, table.state_dtype);
        }
        Rule::Lion { betas, state_dtype } => {
            take(betas, table.betas);
            take(state_dtype, table.state_dtype);
        }
        Rule::AdamW8bit { betas, eps } | Rule::ScheduleFree { betas, eps } => {
            take(betas, table.betas);
            take(eps, table.eps);
        }
        Rule::Lion8bit { betas } => take(betas, table.betas),
        Rule::SophiaG { betas, eps, gamma, hessian_every, hessian_clip_norm } => {
            take(betas, table.betas);
            take(eps, table.eps);
            take(gamma, table.gamma);
            take(hessian_every, table.hessian_every);
            take(hessian_clip_norm, table.hessian_clip_norm);
            let remedy = "use 0 for no clipping";
            problems.require_not_negative("optim.hessian_clip_norm", *hessian_clip_norm, remedy);
            check_sophia(*gamma, *hessian_every, problems);
        }
        Rule::SophiaH { betas, eps, gamma, hessian_every, probe } => {
            take(betas, table.betas);
            take(eps, table.eps);
            take(gamma, table.gamma);
            take(hessian_every, table.hessian_every);
            take(probe, table.probe);
            check_sophia(*gamma, *hessian_every, problems);
        }
        // Filled once their learning rate is known, which their rest takes over.
        _ => {}
    }
    check_common(wanted, table, problems);
    rule
}

/// Replaces a default by what the table has.
pub(super) fn take<T>(value: &mut T, written: Option<T>) {
    if let Some(written) = written {
        *value = written;
    }
}

fn check_sophia(gamma: f64, hessian_every: u64, problems: &mut Problems) {
    problems.require_positive("optim.gamma", gamma, "use a number such as 0.05");
    let (key, remedy) = ("optim.hessian_every", "use 10 for one in ten steps");
    problems.require(hessian_every > 0, key, hessian_every, "must be above 0", remedy);
}

fn check_common(wanted: RuleName, table: &OptimTable, problems: &mut Problems) {
    if let Some(eps) = table.eps {
        problems.require(
            EPS.contains(&eps),
            "optim.eps",
            Shown(eps),
            format!("must be at least {:?} and below {:?}", EPS.start, EPS.end),
            "use a small number such as 1e-8",
        );
    }
    let Some(betas) = table.betas else { return };
    problems.require(
        betas.iter().all(|beta| (0.0..1.0).contains(beta)),
        "optim.betas",
        format!("{betas:?}"),
        "must both be at least 0 and below 1",
        "use numbers such as [0.9, 0.95]",
    );
    problems.require(
        wanted != RuleName::ScheduleFree || betas[0] > 0.0,
        "optim.betas",
        format!("{betas:?}"),
        "must begin above 0 with optim.rule = \"schedule_free\", which divides by it",
        "use numbers such as [0.9, 0.999]",
    );
}

/// Refuses two ways to estimate the curvature in one run: each costs passes of its own.
fn one_estimate(wanted: RuleName, groups: &BTreeMap<Group, GroupPlan>, problems: &mut Problems) {
    let other = match wanted {
        RuleName::SophiaH => RuleName::SophiaG,
        _ => RuleName::SophiaH,
    };
    let used: Vec<RuleName> = groups.values().map(|plan| plan.rule.unwrap_or(wanted)).collect();
    if !used.contains(&RuleName::SophiaG) || !used.contains(&RuleName::SophiaH) {
        return;
    }
    let found = groups.iter().find(|(_, plan)| plan.rule == Some(other));
    if let Some((group, _)) = found {
        let key = format!("optim.groups.{}.rule", name(*group));
        let found = if other == RuleName::SophiaH { "\"sophia_h\"" } else { "\"sophia_g\"" };
        let problem = "is a second way to estimate the curvature in one run";
        problems.require(false, &key, found, problem, "use the same for all groups");
    }
}

fn groups(
    tables: &GroupTables,
    (wanted, decays): (RuleName, bool),
    spec: &DecoderSpec,
    problems: &mut Problems,
) -> BTreeMap<Group, GroupPlan> {
    let all = [
        (Group::Matrix, tables.matrix, 1.0, true),
        (Group::Embedding, tables.embedding, 1.0, true),
        (Group::Norm, tables.norm, 0.0, true),
        (Group::Bias, tables.bias, 0.0, spec.bias),
        (Group::Head, tables.head, 1.0, !spec.tied),
        (Group::Scalar, tables.scalar, 0.0, spec.residual.has_scalars()),
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
        let rule = table.rule.filter(|rule| *rule != wanted);
        groups.insert(group, GroupPlan { rule, lr_multiplier, weight_decay_multiplier });
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
        Group::Scalar => "scalar",
    }
}
