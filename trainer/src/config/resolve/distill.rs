//! `[distill]`: defaults and ranges.

use super::super::plan::{DistillDecay, DistillPlan, LossPlan};
use super::super::run_config::DistillTable;
use super::{Problems, Shown};

pub(super) fn resolve(
    table: &DistillTable,
    steps: u64,
    loss: &LossPlan,
    problems: &mut Problems,
) -> Option<DistillPlan> {
    let teacher = table.teacher.clone()?;
    let plan = DistillPlan {
        teacher,
        weight: table.weight.unwrap_or(1.0),
        steps: table.steps.unwrap_or(steps),
        decay: table.decay.unwrap_or(DistillDecay::Linear),
        temperature: table.temperature.unwrap_or(2.0),
    };
    problems.require(
        plan.weight > 0.0 && plan.weight <= 1.0,
        "distill.weight",
        Shown(plan.weight),
        "must be above 0 and at most 1",
        "use 1 to begin with the teacher alone",
    );
    let remedy = "use run.steps to fade the teacher out over the whole run";
    problems.require(plan.steps > 0, "distill.steps", plan.steps, "must be above 0", remedy);
    problems.require_positive("distill.temperature", plan.temperature, "use 2, or 1 for none");
    problems.require(
        loss.is_plain(),
        "loss",
        format!(
            "z_loss = {}, label_smoothing = {}",
            Shown(loss.z_loss),
            Shown(loss.label_smoothing)
        ),
        "does not go with distill.teacher, whose loss is a mixture of its own",
        "leave out [loss], or [distill]",
    );
    Some(plan)
}
