//! `[init]` and the stages of `[[growth]]`: defaults, and the rules between stages.

use toml::Value;

use super::super::plan::{
    DepthGrowth, GrowthPlan, GrowthStage, InitPlan, InitScheme, MomentGrowth, PhaseMode, RuleName,
    WidthGrowth,
};
use super::super::run_config::{ModelTable, RunConfig};
use super::super::stages::{GrowthStageTable, GrowthTable, InitTable};
use super::{Problems, Shown, model};
use crate::model::config::ModelConfig;

pub(super) fn resolve(table: &InitTable, problems: &mut Problems) -> InitPlan {
    let growth = table.growth.as_ref();
    InitPlan {
        scheme: table.scheme.unwrap_or_default(),
        from: table.from.clone(),
        growth: growth.map(|growth| growth_plan(growth, "init.growth", problems)),
    }
}

fn growth_plan(table: &GrowthTable, prefix: &str, problems: &mut Problems) -> GrowthPlan {
    let default = GrowthPlan::DEFAULT;
    let split_std = table.split_std.unwrap_or(default.split_std);
    let key = format!("{prefix}.split_std");
    let remedy = "use 0.1 for splits of a tenth of the initial deviation";
    problems.require(split_std >= 0.0, &key, Shown(split_std), "must be at least 0", remedy);
    let depth = table.depth.unwrap_or(default.depth);
    let width = table.width.unwrap_or(default.width);
    let learn_steps = table.learn_steps.unwrap_or(0);
    let is_pattern = matches!(depth, DepthGrowth::Stack | DepthGrowth::Interpolate);
    problems.require(
        learn_steps == 0 || is_pattern && width == WidthGrowth::Equal,
        &format!("{prefix}.learn_steps"),
        learn_steps,
        "learns a map that starts as depth = \"stack\" or \"interpolate\" and width = \"equal\"",
        "set these two",
    );
    problems.require(
        learn_steps == 0 || prefix == "init.growth",
        &format!("{prefix}.learn_steps"),
        learn_steps,
        "is not possible within a run",
        "stop the run, use grove grow, and start from what it writes with init.from",
    );
    let mask_steps = check_masks(table, (prefix, width), problems);
    let default_moments = match learn_steps {
        0 => GrowthPlan::default_moments(depth, width, mask_steps),
        _ => MomentGrowth::Fresh,
    };
    GrowthPlan {
        learn_steps,
        mask_steps,
        depth,
        width,
        residual: table.residual.unwrap_or(default.residual),
        split_std,
        moments: table.moments.unwrap_or(default_moments),
    }
}

/// The steps of a stage's masks, with what stands against them on their own.
fn check_masks(
    table: &GrowthTable,
    (prefix, width): (&str, WidthGrowth),
    problems: &mut Problems,
) -> u64 {
    let mask_steps = table.mask_steps.unwrap_or(0);
    let key = format!("{prefix}.mask_steps");
    problems.require(
        width != WidthGrowth::Random || mask_steps > 0,
        &key,
        mask_steps,
        "leaves what width = \"random\" adds to change the function at once",
        "set the steps in which their masks rise, such as a tenth of the run",
    );
    mask_steps
}

/// The stages in their order, each with the whole model that it leads to.
pub(super) fn stages(
    config: &RunConfig,
    (first, steps): (&ModelConfig, u64),
    sequence_length: usize,
    problems: &mut Problems,
) -> Vec<GrowthStage> {
    let mut written = config.written_model.clone();
    // Heads keep their width, whatever the default would be at the new one.
    if let ModelConfig::Llama(llama) = first {
        written.insert("head_dim".to_owned(), Value::Integer(llama.head_dim as i64));
    }
    let end_of = |next: usize| config.growth.get(next).map_or(steps, |stage| stage.at_step);
    if let Some(growth) = &config.init.growth {
        check_ramp("init.growth", (growth, config.optim.rule), (0, end_of(0)), problems);
        check_masked_form("init.growth", growth.mask_steps, &[first], problems);
    }
    let (mut plans, mut before) = (Vec::new(), 0);
    for (index, stage) in config.growth.iter().enumerate() {
        check_step(index, stage.at_step, (before, steps), problems);
        before = stage.at_step;
        let steps_here = (stage.at_step, end_of(index + 1));
        let prefix = format!("growth[{index}]");
        check_ramp(&prefix, (&stage.growth, config.optim.rule), steps_here, problems);
        written.extend(stage.model.clone());
        let plan = stage_plan(index, stage, (&written, sequence_length), problems);
        if let Some(plan) = &plan {
            let mask_steps = Some(plan.growth.mask_steps);
            check_masked_form(&prefix, mask_steps, &[first, &plan.model], problems);
        }
        plans.extend(plan);
    }
    plans
}

/// A stage's masks must be 1 before the next stage, and at the end of the run.
fn check_ramp(
    prefix: &str,
    (growth, rule): (&GrowthTable, Option<RuleName>),
    (from_step, end): (u64, u64),
    problems: &mut Problems,
) {
    let mask_steps = growth.mask_steps.unwrap_or(0);
    let key = format!("{prefix}.mask_steps");
    problems.require(
        from_step.saturating_add(mask_steps) <= end,
        &key,
        mask_steps,
        format!("goes beyond step {end}, where the stage ends"),
        "use fewer steps: what is exported or grown must be the plain model",
    );
    problems.require(
        mask_steps == 0 || rule != Some(RuleName::SophiaH),
        &key,
        mask_steps,
        "is not known to the second derivatives of optim.rule = \"sophia_h\"",
        "use \"sophia_g\"",
    );
}

/// Masks of 0 keep the function where a silent branch leaves the stream as it is and no norm sees new
/// heads and neurons beside the old ones: in the plain form.
fn check_masked_form(
    prefix: &str,
    mask_steps: Option<u64>,
    models: &[&ModelConfig],
    problems: &mut Problems,
) {
    let mask_steps = mask_steps.unwrap_or(0);
    let is_plain = models.iter().all(|model| model.spec().residual.is_plain());
    problems.require(
        mask_steps == 0 || is_plain,
        &format!("{prefix}.mask_steps"),
        mask_steps,
        "masks branches of Llama's and GPT-2's residual form, and model.residual, or the init.scheme \
         that brings it, is another",
        "remove model.residual and use an init.scheme without a form, or train at the full size from \
         the start",
    );
}

fn check_step(index: usize, at_step: u64, (before, steps): (u64, u64), problems: &mut Problems) {
    let key = format!("growth[{index}].at_step");
    problems.require(
        at_step < steps,
        &key,
        at_step,
        format!("is not before the last of run.steps = {steps}, so that nothing would be trained"),
        "grow at an earlier step, or train for more",
    );
    problems.require(
        at_step > before,
        &key,
        at_step,
        match index {
            0 => "must be above 0".to_owned(),
            _ => format!("does not come after the stage before it, at step {before}"),
        },
        match index {
            0 => "start from a grown model with init.from",
            _ => "give stages in rising order, one at a step",
        },
    );
}

fn stage_plan(
    index: usize,
    stage: &GrowthStageTable,
    (written, sequence_length): (&toml::Table, usize),
    problems: &mut Problems,
) -> Option<GrowthStage> {
    let prefix = format!("growth[{index}]");
    let growth = growth_plan(&stage.growth, &prefix, problems);
    let table: ModelTable = match written.clone().try_into() {
        Ok(table) => table,
        Err(error) => {
            problems.require(
                false,
                &format!("{prefix}.model"),
                "as written",
                format!("is refused: {error}"),
                "use the keys of [model]",
            );
            return None;
        }
    };
    let schedule = stage.schedule.unwrap_or(PhaseMode::Continue);
    // Initial values are drawn once, so that no scheme brings a form here.
    let model = model::resolve(&table, InitScheme::Gpt2, sequence_length, problems)?;
    Some(GrowthStage { at_step: stage.at_step, schedule, growth, model })
}
