//! What a run says before its first step.

use super::Run;
use crate::report::{plan_lines, stage_lines};

impl Run<'_> {
    /// The plan, the sizes that follow from it, and where the run begins.
    pub(super) fn say_start(&mut self) {
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
        for line in stage_lines(self.data.stages(), &self.recipe.ramp) {
            self.sinks.progress().note(&line);
        }
    }
}
