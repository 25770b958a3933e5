//! What a run begins with, and what it says before its first step.

use tch::Device;

use super::{Run, exclude};
use crate::checkpoint::{AllowedChange, Checkpoint};
use crate::config::Plan;
use crate::corpus::Data;
use crate::cuda::Recorder;
use crate::error::Error;
use crate::exchange::Source;
use crate::folder;
use crate::growth::start;
use crate::growth::within::Grown;
use crate::model::compute::Compute;
use crate::pass::Graphs;
use crate::peak;
use crate::report::{emulation_line, plan_lines, stage_lines};
use crate::state::RunState;
use crate::step::Recipe;

/// Fills the state of a stage from the checkpoint to resume, or as a new run's; returns the changes
/// of meaning that were ever allowed.
pub(super) fn begin(
    (plans, stage): (&[Plan], usize),
    recipe: &Recipe,
    (state, data): (&mut RunState, &mut Data),
    resumed: Option<&Checkpoint>,
) -> Result<Vec<AllowedChange>, Error> {
    let plan = &plans[stage];
    let allowed = match resumed {
        Some(checkpoint) => folder::resume(plans, data, (state, &recipe.rules), checkpoint)?,
        None => {
            start::start(plan, &recipe.compute, (state, &recipe.rules))?;
            Vec::new()
        }
    };
    exclude(plan, state)?;
    if let Some(checkpoint) = resumed {
        folder::keep_past(plan, data, checkpoint, &state.history.excluded)?;
    }
    Ok(allowed)
}

/// The plan with the masks of `[init.growth]`: over what a new run's model has beside the one it
/// starts from, which a resume need not have any more.
///
/// # Errors
/// If that model, or the plan of the checkpoint to resume, cannot be read.
pub(super) fn with_first_masks(plan: &Plan) -> Result<Plan, Error> {
    let mut plan = plan.clone();
    let (Some(from), Some(growth)) = (&plan.init.from, plan.init.growth) else { return Ok(plan) };
    if growth.mask_steps == 0 {
        return Ok(plan);
    }
    let resumed = if plan.checkpoint.resume { folder::newest(&plan)? } else { None };
    plan.ramp = match resumed {
        // In a later stage they are none, or that stage's own.
        Some(checkpoint) => Plan::from_toml(&checkpoint.run_state().plan_toml)?
            .ramp
            .filter(|ramp| ramp.from_step == 0),
        None => growth.ramp(0, [&Source::open(from)?.config, &plan.model]),
    };
    Ok(plan)
}

/// What is to be said of a growth that the run begins with, on rank 0; its certificate is written to
/// the run's folder. A growth that was to keep the function and did not is a warning.
pub(super) fn certify(
    (plans, stage): (&[Plan], usize),
    data: &Data,
    resumed: Option<&Checkpoint>,
    warnings: &mut Vec<String>,
) -> Result<Vec<String>, Error> {
    let before = resumed.map_or(0, |from| plans[0].stage_of(from.run_state().step));
    let plan = &plans[stage];
    let windows = if plan.eval.is_some() { data.validation(plan)? } else { Vec::new() };
    let grown = Grown {
        plans: [&plans[0], plan],
        stages: [before, stage],
        from: resumed,
        held_out: windows.first().map(|(_, windows)| windows),
    };
    let Some(certificate) = grown.certify()? else { return Ok(Vec::new()) };
    let lines = certificate.lines();
    if certificate.claims_function && !certificate.is_exact {
        warnings.extend(lines);
        return Ok(Vec::new());
    }
    Ok(lines)
}

/// The peak that the plan states, or else the measured one, in FLOP/s.
pub(super) fn peak_flops(plan: &Plan, compute: &Compute) -> f64 {
    match plan.metrics.peak_tflops {
        0.0 => peak::measure(compute),
        tflops => tflops * 1e12,
    }
}

/// What records micro-steps, if the plan wants them recorded and there is a GPU.
pub(super) fn graphs(plan: &Plan, compute: &Compute) -> Result<Option<Graphs>, Error> {
    match compute.device {
        Device::Cuda(ordinal) if plan.gpu.graphs => Ok(Some(Graphs::new(Recorder::new(ordinal)?))),
        _ => Ok(None),
    }
}

impl Run<'_> {
    /// The plan, the sizes that follow from it, where the run begins, and what has grown.
    pub(super) fn say_start(&mut self, growth_lines: &[String]) {
        let (plan, degree) = (self.plan, self.collective.degree());
        self.sinks.progress().note(&plan_lines(plan));
        let line = format!(
            "{:.2} M parameters; {} tokens a step; {degree} rank(s) of {} thread(s) on {:?}; peak \
             {:.0} GFLOP/s a rank",
            plan.derived.num_parameters as f64 / 1e6,
            plan.derived.tokens_per_step,
            self.recipe.compute.num_threads(),
            self.recipe.compute.device,
            self.peak_flops / 1e9,
        );
        self.sinks.progress().note(&line);
        if let Some(line) = emulation_line(&self.recipe.compute) {
            self.sinks.progress().note(&line);
        }
        if let Some(Err(error)) = &self.recipe.kernels {
            let line = format!("{error}; updates go by libtorch's operations, which are slower");
            self.sinks.progress().warn(&line);
        }
        for warning in std::mem::take(&mut self.warnings) {
            self.sinks.progress().warn(&warning);
        }
        if self.state.step > 0 {
            let line = format!("resumed at step {} of {}", self.state.step, plan.run.steps);
            self.sinks.progress().note(&line);
        }
        for line in growth_lines {
            self.sinks.progress().note(line);
        }
        for line in stage_lines(self.data.stages(), &self.recipe.ramp) {
            self.sinks.progress().note(&line);
        }
    }
}
