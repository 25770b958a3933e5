//! A run's saves: when one is due, how it begins, and what its end means for the run.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use grove_parallel::Collective;

use super::{Run, is_due};
use crate::checkpoint::{Blueprint, SmallFiles};
use crate::config::Plan;
use crate::error::Error;
use crate::eval_point::{to_eval_point, to_training_point};
use crate::saver::{Ended, Outcome, Published, Retention, Saver};
use crate::saving::{self, Keeping};
use crate::step_numbers::{SaveCounts, first_text, sum_integers};

/// How often a save that failed is tried again, each time at the next step: a disk may be freed, and
/// a run should not spend itself on one that is not. After that the next save is the next due one.
const RETRIES: u32 = 2;

/// What a run remembers of its saves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saves {
    /// The step of the newest checkpoint; 0 if there is none.
    saved_step: u64,
    /// Saves that have failed since one has not.
    failures: u32,
    /// Times that the next step may try again.
    retries: u32,
    /// Whether no step follows: then a failure is the run's error, not a warning.
    is_last: bool,
    /// How long the last save took; 0 if there was none.
    last_seconds: f64,
    /// Seconds that the run has waited since they were last taken.
    seconds: f64,
    /// The same for the save under way.
    held_seconds: f64,
}

impl Saves {
    /// For a run that goes on after a step.
    pub(super) fn after(step: u64) -> Self {
        Self {
            saved_step: step,
            failures: 0,
            retries: 0,
            is_last: false,
            last_seconds: 0.0,
            seconds: 0.0,
            held_seconds: 0.0,
        }
    }

    /// Hands out the seconds that the run has waited, and begins anew.
    pub(super) fn take_seconds(&mut self) -> f64 {
        std::mem::take(&mut self.seconds)
    }

    fn held(&mut self, since: Instant) {
        let seconds = since.elapsed().as_secs_f64();
        self.seconds += seconds;
        self.held_seconds += seconds;
    }
}

/// A saver for what the plan says.
pub(super) fn saver(plan: &Plan, collective: &dyn Collective) -> Result<Saver, Error> {
    let retention = Retention {
        keep_last: NonZeroUsize::new(plan.checkpoint.keep_last as usize)
            .expect("the plan keeps at least one checkpoint"),
        keep_every: plan.checkpoint.keep_every,
    };
    let place = (collective.rank(), collective.degree());
    Saver::new(&plan.run.dir, place, retention).map_err(|source| Error::Io {
        action: "start a background thread for",
        path: plan.run.dir.clone(),
        source,
    })
}

impl Run<'_> {
    pub(super) fn save_is_due(&self) -> bool {
        let step = self.state.step;
        let again = self.saves.retries > 0 && !self.saver.is_saving();
        // The last step is saved when the loop has ended.
        step < self.plan.run.steps && (again || is_due(step, self.plan.checkpoint.every))
    }

    /// Begins to save the state as it is now: copies this rank's part, which the run waits for, and
    /// leaves the rest to the background. The save before must end first. The last save of a run
    /// copies nothing, so that saving takes no memory which training did not take.
    ///
    /// # Collectives
    /// Those of [`Saver::drain`] and of [`to_eval_point`], and one all-reduce.
    pub(super) fn begin_save(&mut self) -> Result<(), Error> {
        let since = Instant::now();
        self.clock.show("save");
        self.drain()?;
        self.saves.retries = self.saves.retries.saturating_sub(1);
        let tensors = saving::tensor_list(&self.state, &self.recipe.rules);
        let max_shard_bytes = self.plan.checkpoint.max_shard_bytes;
        let blueprint = Arc::new(Blueprint::new(self.state.step, &tensors, max_shard_bytes)?);
        let small_files = self.small_files();
        let missing = i64::from(small_files.is_err());
        let missing = sum_integers(self.collective, &[missing], "files that cannot be read")?[0];
        let small_files = match small_files {
            Ok(small_files) if missing == 0 => small_files,
            other => {
                let (step, seconds) = (self.state.step, since.elapsed().as_secs_f64());
                self.ended(Ended { step, seconds, outcome: Outcome::Failed(other.err()) })?;
                return Ok(());
            }
        };
        let moved = to_eval_point(&self.state.units, &self.recipe.rules, &mut self.traffic)?;
        let placement = &self.traffic.sharding.placement;
        // Nothing changes what is saved last, unless it goes back to the training point.
        let buffer = self.saver.take_buffer();
        let keeping = match self.saves.is_last && !moved {
            true => Keeping::Held,
            false => Keeping::Copied(buffer),
        };
        let folding = self.plan.folding(self.state.step);
        let state = (&self.state, folding.as_ref());
        let snapshot = saving::snapshot(state, placement, &blueprint, keeping)?;
        if moved {
            to_training_point(&self.state.units, &mut self.traffic)?;
        }
        self.saver.begin(blueprint, snapshot, small_files);
        self.saves.held_seconds = 0.0;
        self.saves.held(since);
        Ok(())
    }

    /// Rank 0 writes the files that are no tensors.
    fn small_files(&self) -> Result<Option<SmallFiles>, crate::checkpoint::Error> {
        if self.collective.rank() > 0 {
            return Ok(None);
        }
        saving::small_files(self.plan, &self.state, &self.data, &self.allowed_changes).map(Some)
    }

    /// Hears from a step how far the ranks are with the save under way.
    pub(super) fn hear_of_save(&mut self, all: SaveCounts) -> Result<(), Error> {
        match self.saver.hear(all) {
            Some(ended) => self.ended(ended).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Waits for the save under way before the run ends by an error that every rank has found, or goes
    /// back: what was copied before is still good.
    pub(super) fn finish_save(&mut self) -> Result<(), Error> {
        self.drain().map(|_| ())
    }

    /// The step of the newest checkpoint; 0 if there is none.
    pub(super) fn saved_step(&self) -> u64 {
        self.saves.saved_step
    }

    /// Waits for the save under way. Returns why it failed, if it did.
    fn drain(&mut self) -> Result<Option<String>, Error> {
        match self.saver.drain(self.collective)? {
            Some(ended) => self.ended(ended),
            None => Ok(None),
        }
    }

    /// Sees to it that the present step is saved, when none follows: the error is the run's.
    pub(super) fn save_the_last(&mut self) -> Result<(), Error> {
        self.clock.show("save");
        self.drain()?;
        let step = self.state.step;
        if self.saves.saved_step < step {
            self.saves.is_last = true;
            self.begin_save()?;
            let failed = self.drain()?;
            if self.saves.saved_step < step {
                let reason = failed.unwrap_or_else(|| "the checkpoint is not saved".to_owned());
                return Err(Error::NotSaved { step, reason });
            }
        }
        Ok(())
    }

    /// Sees to it that the present step is saved before the run stops because it was asked to. Where
    /// `checkpoint.grace_seconds` leave too little time for it, as rank 0 finds, an earlier checkpoint
    /// must do.
    ///
    /// # Collectives
    /// Those of a save, and an all-reduce.
    pub(super) fn save_before_a_stop(&mut self) -> Result<(), Error> {
        self.clock.show("save");
        self.drain()?;
        let (used, grace) = (self.stop.seconds_since_seen(), self.plan.checkpoint.grace_seconds);
        let Saves { saved_step, last_seconds, .. } = self.saves;
        let is_late = grace > 0 && saved_step > 0 && used + last_seconds > grace as f64;
        let is_late = i64::from(is_late && self.collective.rank() == 0);
        if sum_integers(self.collective, &[is_late], "whether there is time to save")?[0] == 0 {
            return self.save_the_last();
        }
        if saved_step < self.state.step {
            let line = format!(
                "step {} is not saved: {used:.1} of checkpoint.grace_seconds = {grace} are over, and the \
                 last save took {last_seconds:.1} s; the newest checkpoint is step {saved_step}",
                self.state.step
            );
            self.sinks.progress().warn(&line);
        }
        Ok(())
    }

    /// Says what became of a save, and returns why it failed, if it did: the same on all ranks.
    ///
    /// # Collectives
    /// An all-gather if it failed.
    fn ended(&mut self, ended: Ended) -> Result<Option<String>, Error> {
        let Ended { step, seconds, outcome } = ended;
        match outcome {
            Outcome::Saved(published) => {
                let last_seconds = seconds;
                self.saves =
                    Saves { saved_step: step, failures: 0, retries: 0, last_seconds, ..self.saves };
                if let Some(Published { folder, not_pruned }) = published {
                    let held = self.saves.held_seconds;
                    let line = format!(
                        "saved {} in {seconds:.2} s, for {held:.2} s of which the run waited",
                        folder.display()
                    );
                    self.sinks.progress().note(&line);
                    if let Some(error) = not_pruned {
                        self.sinks.progress().warn(&format!("{error}; older checkpoints stay"));
                    }
                }
                Ok(None)
            }
            Outcome::Failed(error) => {
                let text = error.map(|error| error.to_string()).unwrap_or_default();
                let reason = first_text(self.collective, &text, "why a save failed")?;
                let Saves { saved_step, failures, .. } = self.saves;
                if failures == 0 && !self.saves.is_last {
                    let line = format!(
                        "{reason}; the run goes on, its last checkpoint is step {saved_step}"
                    );
                    self.sinks.progress().warn(&line);
                }
                // The first of a row is tried again, not those that are tries themselves.
                if self.saves.retries == 0 && is_due(step, self.plan.checkpoint.every) {
                    self.saves.retries = RETRIES;
                }
                self.saves.failures += 1;
                Ok(Some(reason))
            }
        }
    }
}
