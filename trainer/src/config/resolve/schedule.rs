//! What changes over the steps: the learning rate's shape, its phases, and the weight decay's shape.

use super::super::plan::{DecayShape, PhaseMode, Schedule, SchedulePlan};
use super::super::run_config::{ScheduleName, ScheduleTable};
use super::{Problems, Shown};

/// The schedule of a `[schedule]` table over `steps`, and the steps of its cooldown. `decays`: whether
/// there is any weight decay.
pub(super) fn resolve(
    table: &ScheduleTable,
    steps: u64,
    decays: bool,
    problems: &mut Problems,
) -> (SchedulePlan, u64) {
    let length = phase_length(table, steps, problems);
    let (shape, cooldown_steps) = shape(table, length, problems);
    let weight_decay = decays.then(|| table.weight_decay.unwrap_or_default());
    let changes = weight_decay.is_some_and(|shape| shape != DecayShape::Constant);
    let weight_decay_final_ratio = changes.then(|| table.weight_decay_final_ratio.unwrap_or(0.0));
    if let Some(ratio) = weight_decay_final_ratio {
        problems.require(
            (0.0..=1.0).contains(&ratio),
            "schedule.weight_decay_final_ratio",
            Shown(ratio),
            "must be at least 0 and at most 1",
            "use 0 to end without decay",
        );
    }
    let plan = SchedulePlan {
        shape,
        by: table.by.unwrap_or_default(),
        mode: table.mode.unwrap_or_default(),
        from_step: table.from_step,
        rewind_to: table.rewind_to,
        rewarm_steps: table.from_step.map(|_| table.rewarm_steps.unwrap_or(0)),
        weight_decay,
        weight_decay_final_ratio,
    };
    (plan, cooldown_steps)
}

/// Steps of the schedule of the run's last phase.
fn phase_length(table: &ScheduleTable, steps: u64, problems: &mut Problems) -> u64 {
    let mode = table.mode.unwrap_or_default();
    let missing = |key: &str, about: &str, problems: &mut Problems| {
        let problem = format!("needs {key}, {about}");
        let found = if mode == PhaseMode::Fresh { "\"fresh\"" } else { "\"rewind\"" };
        let remedy = format!("set {key}, or use schedule.mode = \"continue\"");
        problems.require(false, "schedule.mode", found, problem, remedy);
    };
    let Some(from_step) = table.from_step else {
        if mode != PhaseMode::Continue {
            let about = "the first step of the phase (the step of the checkpoint it resumes from)";
            missing("schedule.from_step", about, problems);
        }
        return steps;
    };
    problems.require(
        from_step < steps,
        "schedule.from_step",
        from_step,
        format!("is not below run.steps = {steps}"),
        "raise run.steps, or begin the phase earlier",
    );
    let left = steps.saturating_sub(from_step);
    match (mode, table.rewind_to) {
        (PhaseMode::Continue, _) => steps,
        (PhaseMode::Fresh, _) => left,
        (PhaseMode::Rewind, None) => {
            missing("schedule.rewind_to", "the step to go back to", problems);
            steps
        }
        (PhaseMode::Rewind, Some(to)) => {
            problems.require(
                to <= from_step,
                "schedule.rewind_to",
                to,
                format!("is after schedule.from_step = {from_step}"),
                "rewind to an earlier step",
            );
            left.saturating_add(to)
        }
    }
}

/// The learning rate's shape over the `steps` of the last phase, and the steps of its cooldown.
fn shape(table: &ScheduleTable, steps: u64, problems: &mut Problems) -> (Schedule, u64) {
    let warmup_steps = table.warmup_steps.unwrap_or(0);
    let (schedule, final_ratio, cooldown_fraction) =
        match table.kind.unwrap_or(ScheduleName::Cosine) {
            ScheduleName::Constant => (Schedule::Constant { warmup_steps }, 0.0, None),
            ScheduleName::InverseSqrt => (Schedule::InverseSqrt { warmup_steps }, 0.0, None),
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
    let whole = match table.mode.unwrap_or_default() {
        PhaseMode::Continue => "run.steps",
        PhaseMode::Fresh | PhaseMode::Rewind => "the steps of the phase",
    };
    problems.require(
        warmup_steps.saturating_add(cooldown_steps) <= steps,
        "schedule.warmup_steps",
        warmup_steps,
        format!("is above {whole} = {steps}{cooldown}"),
        "warm up for fewer steps, or train for more",
    );
    (schedule, cooldown_steps)
}
