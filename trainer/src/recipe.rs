//! From the plan's words to the rooms' own types: what stays the same from step to step.

use grove_optim::{
    AdamW8bitConfig, AdamWConfig, Decay, Groups, Kernels, Lion8bitConfig, LionConfig, Phase,
    PhaseMode, Role, RuleConfig, Rules as ByRole, Schedule as LrSchedule, ScheduleConfig,
    ScheduleFreeConfig, SophiaConfig, StateDtype,
};
use grove_parallel::Collective;
use tch::Device;

use crate::config::{
    self, DecayShape, DistillDecay, DistillPlan, Group, GroupPlan, Home, LossPlan, Plan,
    Recompute as Wanted, Reduction, Rule, Scaling as MuonScaling, Schedule, ScheduleUnit,
};
use crate::curvature::{Curvature, Estimator, Probe};
use crate::error::Error;
use crate::guard;
use crate::kernel::cross_entropy::Terms;
use crate::model::block::Recompute;
use crate::model::compute::Compute;
use crate::model::decoder::{Decoder, RunOptions};
use crate::model::facts::param_facts;
use crate::model::plain::PlainModel;
use crate::model::scaling::{MatrixStep, Scaling};
use crate::pass::Documents;
use crate::rules::Rules;
use crate::sharding::{Placement, Sharding, Stage, Sums};
use crate::state::RunState;
use crate::step::Recipe;
use crate::teacher::{Distillation, Fading};

/// The recipe of a plan for one of `degree` ranks.
///
/// # Errors
/// If the optimizer refuses a hyper-parameter.
pub fn recipe(plan: &Plan, compute: Compute, degree: usize) -> Result<Recipe, Error> {
    let LossPlan { z_loss, label_smoothing } = plan.loss;
    let mut model = Decoder::new(&compute, &plan.model, run_options(plan)).with_ramp(
        &compute,
        plan.ramp.clone(),
        0,
    );
    model.head.terms = Terms { z_loss, label_smoothing };
    let scaling = model.spec.scaling;
    let rules = rules(plan, &scaling)?;
    Ok(Recipe {
        kernels: kernels(plan, &compute, &rules),
        model,
        compute,
        rules,
        groups: groups(plan, &scaling),
        schedule: schedule(plan)?,
        weight_decay: weight_decay(plan)?,
        curvature: curvature(plan),
        distillation: plan.distill.as_ref().map(distillation),
        clip_norm: plan.optim.clip_norm,
        seed: plan.seed,
        guard: guard::Rules::new(&plan.guard),
        ramp: plan.batch.ramp(),
        degree,
        documents: match plan.data.mask_documents {
            Some(true) => Documents::Apart,
            Some(false) | None => Documents::Together,
        },
    })
}

/// The update rules of a plan.
///
/// # Errors
/// If one refuses a hyper-parameter.
pub fn rules_of(plan: &Plan) -> Result<Rules, Error> {
    rules(plan, &plan.model.spec().scaling)
}

/// The kernels of the element-wise rules, where masters live on a GPU.
fn kernels(
    plan: &Plan,
    compute: &Compute,
    rules: &Rules,
) -> Option<Result<Kernels, grove_optim::Error>> {
    let (Device::Cuda(ordinal), Home::Device) = (compute.device, plan.memory.optimizer) else {
        return None;
    };
    let mut all = Vec::new();
    for rule in rules.element_wise.each() {
        if !all.contains(rule) {
            all.push(*rule);
        }
    }
    Some(Kernels::load(ordinal, &all))
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
    let Recipe { compute, model, rules, .. } = recipe;
    let home = match plan.memory.optimizer {
        Home::Device => compute.device,
        Home::Host => Device::Cpu,
    };
    Ok(RunState::allocate(compute, model.units(), rules, (&sharding.placement, home))?)
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

/// The rules: that for whole parameters with those of its roles that have no rule of their own, and
/// those of all other roles.
fn rules(plan: &Plan, scaling: &Scaling) -> Result<Rules, Error> {
    let (optim, by_role) = (&plan.optim, by_role(plan, scaling)?);
    let Some(whole) = optim.rule.whole(optim.weight_decay) else {
        return Ok(Rules { element_wise: by_role, whole: None });
    };
    let mut facts = param_facts(&plan.model);
    facts.retain(|_, facts| own_rule(plan, facts.role).is_none());
    let rest_lr_ratio = optim.rule.rest().map_or(1.0, |rest| rest.lr / optim.lr);
    Ok(Rules::whole(whole.build()?, facts, (by_role, rest_lr_ratio)))
}

/// The rule that a role's group has for itself.
fn own_rule(plan: &Plan, role: Role) -> Option<config::RuleName> {
    let group = match role {
        Role::Matrix => Group::Matrix,
        Role::Embedding => Group::Embedding,
        Role::Norm => Group::Norm,
        Role::Bias => Group::Bias,
        Role::Head => Group::Head,
        Role::Scalar => Group::Scalar,
    };
    plan.optim.groups.get(&group).and_then(|plan| plan.rule)
}

/// The element-wise rule of each role: its group's own, or the run's; beside a rule for whole
/// parameters `AdamW`, for what it does not take.
fn by_role(plan: &Plan, scaling: &Scaling) -> Result<ByRole, Error> {
    let rule = |role: Role| {
        let (rest, own) = (plan.optim.rule.rest(), own_rule(plan, role));
        let config = match (own, plan.optim.rule.whole(plan.optim.weight_decay), rest) {
            (None, Some(_), Some(rest)) => {
                let eps = rest.eps * scaling.eps(role);
                RuleConfig::AdamW(AdamWConfig { eps, ..rest.config() })
            }
            // There is no rest: it takes every role without a rule of its own.
            (None, Some(_), None) => RuleConfig::AdamW(AdamWConfig::default()),
            _ => {
                let rule = own.map_or(plan.optim.rule, config::RuleName::usual);
                rule_config(rule, plan.optim.weight_decay, scaling.eps(role))
            }
        };
        config.build()
    };
    Ok(ByRole {
        matrix: rule(Role::Matrix)?,
        embedding: rule(Role::Embedding)?,
        norm: rule(Role::Norm)?,
        bias: rule(Role::Bias)?,
        head: rule(Role::Head)?,
        scalar: rule(Role::Scalar)?,
    })
}

/// The optimizer room's form of a rule; `eps_factor` is on the epsilon of rules of Adam's kind,
/// which is in units of the gradient.
fn rule_config(rule: Rule, weight_decay: f64, eps_factor: f64) -> RuleConfig {
    match rule {
        Rule::AdamW { betas: [beta1, beta2], eps, state_dtype } => {
            let (eps, state_dtype) = (eps * eps_factor, state_dtype_of(state_dtype));
            RuleConfig::AdamW(AdamWConfig { beta1, beta2, eps, weight_decay, state_dtype })
        }
        Rule::Lion { betas: [beta1, beta2], state_dtype } => {
            let state_dtype = state_dtype_of(state_dtype);
            RuleConfig::Lion(LionConfig { beta1, beta2, weight_decay, state_dtype })
        }
        Rule::AdamW8bit { betas: [beta1, beta2], eps } => {
            let eps = eps * eps_factor;
            RuleConfig::AdamW8bit(AdamW8bitConfig { beta1, beta2, eps, weight_decay })
        }
        Rule::Lion8bit { betas: [beta1, beta2] } => {
            RuleConfig::Lion8bit(Lion8bitConfig { beta1, beta2, weight_decay })
        }
        Rule::SophiaG { betas: [beta1, beta2], eps, gamma, .. }
        | Rule::SophiaH { betas: [beta1, beta2], eps, gamma, .. } => {
            RuleConfig::Sophia(SophiaConfig { beta1, beta2, gamma, eps, weight_decay })
        }
        Rule::ScheduleFree { betas: [beta1, beta2], eps } => {
            let eps = eps * eps_factor;
            RuleConfig::ScheduleFree(ScheduleFreeConfig { beta1, beta2, eps, weight_decay })
        }
        _ => unreachable!("the other rules need parameters whole"),
    }
}

/// How the curvature is estimated, where some group's rule wants it.
fn curvature(plan: &Plan) -> Option<Curvature> {
    let of_groups = plan.optim.groups.values();
    let of_groups =
        of_groups.map(|group| group.rule.map_or(plan.optim.rule, config::RuleName::usual));
    let (every, estimator) = of_groups.into_iter().find_map(|rule| match rule {
        Rule::SophiaG { hessian_every, hessian_clip_norm: clip_norm, .. } => {
            Some((hessian_every, Estimator::GaussNewtonBartlett { clip_norm }))
        }
        Rule::SophiaH { hessian_every, probe, .. } => {
            let probe = match probe {
                config::Probe::Rademacher => Probe::Rademacher,
                config::Probe::Gaussian => Probe::Gaussian,
            };
            let model = Box::new(PlainModel::new(&plan.model));
            Some((hessian_every, Estimator::Hutchinson { probe, model }))
        }
        _ => None,
    })?;
    Some(Curvature { every, estimator, seed: plan.seed })
}

/// When a teacher counts; it is read when it does.
fn distillation(plan: &DistillPlan) -> Distillation {
    let fading = match plan.decay {
        DistillDecay::Linear => Fading::Linear,
        DistillDecay::Cosine => Fading::Cosine,
        DistillDecay::Constant => Fading::Constant,
    };
    let DistillPlan { weight, steps, temperature, .. } = *plan;
    Distillation { weight, steps, fading, temperature, teacher: None }
}

fn state_dtype_of(wanted: config::StateDtype) -> StateDtype {
    match wanted {
        config::StateDtype::Master => StateDtype::Accumulation,
        config::StateDtype::Bf16 => StateDtype::Bf16,
    }
}

/// The learning rate over the steps.
fn schedule(plan: &Plan) -> Result<LrSchedule, Error> {
    let config::SchedulePlan { shape, by, mode, from_step, rewind_to, rewarm_steps, .. } =
        plan.schedule;
    let decay = match shape {
        Schedule::Constant { .. } => Decay::Constant,
        Schedule::InverseSqrt { .. } => Decay::InverseSqrt,
        Schedule::Cosine { final_ratio, .. } => Decay::Cosine { final_ratio },
        Schedule::Linear { final_ratio, .. } => Decay::Linear { final_ratio },
        Schedule::Wsd { final_ratio, cooldown_fraction, .. } => {
            Decay::Wsd { final_ratio, cooldown_fraction }
        }
    };
    let (lr, warmup_steps) = (plan.optim.lr, shape.warmup_steps());
    let schedule = LrSchedule::new(ScheduleConfig { lr, warmup_steps, decay }, plan.run.steps)?;
    let schedule = match by {
        ScheduleUnit::Steps => schedule,
        ScheduleUnit::Tokens => schedule.by_tokens(plan.batch.ramp()),
    };
    let mode = match mode {
        config::PhaseMode::Continue => PhaseMode::Continue,
        config::PhaseMode::Fresh => PhaseMode::Fresh,
        config::PhaseMode::Rewind => PhaseMode::Rewind { to_step: rewind_to.unwrap_or(0) },
    };
    let (from_step, rewarm_steps) = (from_step.unwrap_or(0), rewarm_steps.unwrap_or(0));
    Ok(schedule.with_phase(Phase { from_step, mode, rewarm_steps })?)
}

/// The weight decay over the steps, as a factor.
fn weight_decay(plan: &Plan) -> Result<LrSchedule, Error> {
    let final_ratio = plan.schedule.weight_decay_final_ratio.unwrap_or(1.0);
    let decay = match plan.schedule.weight_decay.unwrap_or_default() {
        DecayShape::Constant => Decay::Constant,
        DecayShape::Linear => Decay::Linear { final_ratio },
        DecayShape::Cosine => Decay::Cosine { final_ratio },
    };
    let config = ScheduleConfig { lr: 1.0, warmup_steps: 0, decay };
    Ok(LrSchedule::new(config, plan.run.steps)?)
}

/// What the rule of the matrices of blocks makes of them.
fn matrix_step(plan: &Plan) -> MatrixStep {
    match own_rule(plan, Role::Matrix).map_or(plan.optim.rule, config::RuleName::usual) {
        Rule::Muon(muon) => match muon.scaling {
            MuonScaling::Original => MatrixStep::Orthogonal,
            MuonScaling::MatchRmsAdamw => MatrixStep::OrthogonalAtRms,
        },
        _ => MatrixStep::Entries,
    }
}

fn groups(plan: &Plan, scaling: &Scaling) -> Groups {
    let mut groups = Groups::default();
    for (name, role, group) in [
        (Group::Matrix, Role::Matrix, &mut groups.matrix),
        (Group::Embedding, Role::Embedding, &mut groups.embedding),
        (Group::Norm, Role::Norm, &mut groups.norm),
        (Group::Bias, Role::Bias, &mut groups.bias),
        (Group::Head, Role::Head, &mut groups.head),
        (Group::Scalar, Role::Scalar, &mut groups.scalar),
    ] {
        if let Some(&GroupPlan { lr_multiplier, weight_decay_multiplier, .. }) =
            plan.optim.groups.get(&name)
        {
            let step = matrix_step(plan);
            group.lr_multiplier = lr_multiplier * scaling.lr(role, step);
            group.weight_decay_multiplier =
                weight_decay_multiplier.unwrap_or(0.0) * scaling.weight_decay(role, step);
        }
    }
    groups
}
