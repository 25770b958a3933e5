//! What becomes of a schedule where a run enters a new phase: the model has grown, or a finished
//! run goes on.

/// How a schedule goes on in a new phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseMode {
    /// As if nothing had happened: the place in the schedule is the step.
    Continue,
    /// The schedule starts anew, warm-up included, over the steps that are left (Du et al. 2024,
    /// arXiv:2405.15319, after a growth by stacking).
    Fresh,
    /// The schedule goes back to where it was at an earlier step, and then takes all of its
    /// remaining course: over the steps that are left and those gone back (as in MSG, Yao et al.
    /// 2023, arXiv:2305.02869).
    Rewind {
        /// The step whose place in the schedule the phase starts at.
        to_step: u64,
    },
}

/// The last phase of a run: where it begins, and how its schedule goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The first step of the phase, counted from **0**: so many steps were done before it.
    pub from_step: u64,
    /// How the schedule goes on from there.
    pub mode: PhaseMode,
    /// Steps of a linear re-warm-up over the phase's first steps, as a factor
    /// `(step - from_step + 1) / rewarm_steps` on the schedule; 0 for none.
    pub rewarm_steps: u64,
}

impl Phase {
    /// The one phase of a run without a break.
    pub const WHOLE: Self = Self { from_step: 0, mode: PhaseMode::Continue, rewarm_steps: 0 };

    /// What is added to places in the schedule, and whether it applies at `step`: places are
    /// counted in any unit `place(step)`, such as steps or tokens.
    pub(crate) fn shift(&self, step: u64, place: impl Fn(u64) -> f64) -> f64 {
        if step < self.from_step {
            return 0.0;
        }
        match self.mode {
            PhaseMode::Continue => 0.0,
            PhaseMode::Fresh => -place(self.from_step),
            PhaseMode::Rewind { to_step } => place(to_step) - place(self.from_step),
        }
    }

    /// The factor of the re-warm-up at `step`.
    pub(crate) fn rewarm(&self, step: u64) -> f64 {
        if step < self.from_step || step - self.from_step >= self.rewarm_steps {
            return 1.0;
        }
        (step - self.from_step + 1) as f64 / self.rewarm_steps as f64
    }
}
