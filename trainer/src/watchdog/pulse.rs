//! What a rank's training thread is doing, for a thread beside it to see.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the training thread does at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doing {
    /// How often what follows has changed: whoever sees it grow sees progress.
    pub changes: u64,
    /// The step under way, from 1; 0 before the first.
    pub step: u64,
    /// Steps begun by this process.
    pub steps_begun: u64,
    /// The round of the step, from 0: one micro-batch of each rank.
    pub round: u64,
    /// The phase, as in the step records, or `start`, `eval`, `save` and the like.
    pub phase: String,
    /// The unit; empty outside of units.
    pub unit: String,
}

impl Doing {
    /// In words, as a beacon says it: `in step 12, phase backward, unit block 3`.
    pub fn describe(&self) -> String {
        let unit =
            if self.unit.is_empty() { String::new() } else { format!(", unit {}", self.unit) };
        let phase = if self.phase.is_empty() { "start" } else { &self.phase };
        match self.step {
            0 => format!("before the first step, phase {phase}{unit}"),
            step => format!("in step {step}, phase {phase}{unit}, micro-batch {}", self.round),
        }
    }
}

/// Where the training thread says what it does. Clones share one place; saying something takes
/// some tens of nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Mutex<Doing>>);

impl Pulse {
    /// Says which step follows.
    pub fn begin_step(&self, step: u64) {
        let mut doing = self.lock();
        (doing.step, doing.round) = (step, 0);
        doing.steps_begun += 1;
        doing.changes += 1;
    }

    /// Says which round of the step follows.
    pub fn begin_round(&self, round: u64) {
        let mut doing = self.lock();
        doing.round = round;
        doing.changes += 1;
    }

    /// Says which phase begins and, unless empty, in which unit.
    pub fn show(&self, phase: &str, unit: &str) {
        let mut doing = self.lock();
        for (place, text) in [(0, phase), (1, unit)] {
            let field = if place == 0 { &mut doing.phase } else { &mut doing.unit };
            field.clear();
            field.push_str(text);
        }
        doing.changes += 1;
    }

    /// What was said last.
    pub fn read(&self) -> Doing {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Doing> {
        // A panic elsewhere leaves at worst half a name.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
