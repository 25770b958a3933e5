//! What a step that went wrong leads to: its black box, and the end, a skip or a way back.

use tch::{Device, Kind, Tensor};

use super::{Run, open_sinks};
use crate::blackbox::{self, MicroBatch, Report, first_not_finite};
use crate::checkpoint::{self, Checkpoint};
use crate::config::{Plan, Policy};
use crate::corpus::place;
use crate::error::Error;
use crate::folder;
use crate::growth::start;
use crate::guard::Tripped;
use crate::metrics::RewindRecord;
use crate::snapshot::Snapshot;
use crate::state::RunState;
use crate::step::StepOutcome;

impl Run<'_> {
    /// Acts on a step that went wrong, the same on every rank. After a skip the step counts, and is
    /// due for whatever follows a step; after a rewind an earlier one was the last.
    ///
    /// # Errors
    /// [`Error::Tripped`] if this is to end the run; those of a resume.
    ///
    /// # Collectives
    /// Those of [`blackbox::norms`], an all-gather, and for a rewind those of a start.
    pub(super) fn trip(&mut self, outcome: &StepOutcome, tripped: Tripped) -> Result<(), Error> {
        let step = self.state.step + 1;
        let data_step = self.state.history.excluded.data_step(self.state.step);
        let trips = self.state.history.note_trip(step);
        let black_box = match self.plan.guard.black_box {
            true => self.write_black_box(outcome, tripped, data_step)?,
            false => None,
        };
        let Tripped { trip, policy } = tripped;
        let (loss, grad_norm) = (outcome.loss, outcome.grad_norm);
        let excluded_step = data_step + 1;
        if policy == Policy::Stop || self.recipe.guard.is_exhausted(trips) {
            let error =
                Error::Tripped { step, trip, loss, grad_norm, trips, excluded_step, black_box };
            return Err(error);
        }
        if policy == Policy::Skip {
            self.state.skip(outcome.num_tokens);
            return Ok(());
        }
        self.rewind(data_step)?;
        let to_step = self.state.step;
        let record = RewindRecord { step, trip, loss, grad_norm, to_step, excluded_step };
        self.sinks.rewind(record);
        Ok(())
    }

    /// Copies the state to host memory if it is due.
    pub(super) fn snapshot_if_due(&mut self) {
        let every = self.plan.guard.snapshot_every.unwrap_or(0);
        if !super::is_due(self.state.step, every) {
            return;
        }
        match &mut self.snapshot {
            Some(snapshot) => snapshot.update(&self.state),
            None => self.snapshot = Some(Snapshot::take(&self.state)),
        }
    }

    /// Goes back to the newest state that is kept: in host memory, on disk, or the initial one.
    fn rewind(&mut self, data_step: u64) -> Result<(), Error> {
        self.clock.show("rewind");
        let abandoned = self.state.history.clone();
        self.finish_save()?;
        self.traffic.residents.settle()?;
        match &self.snapshot {
            Some(snapshot) if snapshot.step() >= self.saved_step() => {
                snapshot.restore(&mut self.state);
            }
            _ if self.saved_step() > 0 => {
                let whole = checkpoint::list(&self.plan.run.dir)?;
                let newest = whole.iter().rfind(|whole| whole.step == self.saved_step());
                let lost = || Error::RewindLost { step: self.saved_step() };
                let checkpoint = Checkpoint::open(&newest.ok_or_else(lost)?.folder)?;
                let state = (&mut self.state, &self.recipe.rules);
                folder::resume(self.plans, &self.data, state, &checkpoint)?;
            }
            _ => {
                self.state.clear();
                let state = (&mut self.state, &self.recipe.rules);
                start::start(self.plan, &self.recipe.compute, state)?;
            }
        }
        let history = &mut self.state.history;
        history.keep_trips(&abandoned);
        history.excluded.insert(data_step);
        self.traffic.refresh_all(&self.state.units)?;
        let (step, excluded) = (self.state.step, &self.state.history.excluded);
        self.batches = self.data.batches(self.plan, self.collective, (step, excluded))?;
        self.sinks.finish();
        self.sinks = open_sinks(self.plan, self.collective, step)?;
        Ok(())
    }

    /// Writes the black box on rank 0 and returns its folder there. A folder that cannot be written
    /// costs a warning.
    fn write_black_box(
        &mut self,
        outcome: &StepOutcome,
        Tripped { trip, .. }: Tripped,
        data_step: u64,
    ) -> Result<Option<std::path::PathBuf>, Error> {
        self.clock.show("blackbox");
        let parameters = blackbox::norms(&self.state.units, &self.traffic.sharding)?;
        let losses = self.all_micro_losses(&outcome.micro_losses)?;
        let folder = blackbox::folder(&self.plan.run.dir, self.state.step + 1);
        if self.collective.rank() > 0 {
            return Ok(Some(folder));
        }
        let history = &self.state.history;
        let written = self.data.loader(self.plan).and_then(|loader| {
            let ramp = self.plan.batch.ramp();
            let trace =
                |(index, &loss)| MicroBatch::trace(&loader, place(&ramp, data_step, index), loss);
            let report = Report {
                step: self.state.step + 1,
                data_step,
                excluded_data_steps: history.excluded.iter().collect(),
                trip,
                loss: outcome.loss,
                grad_norm: outcome.grad_norm,
                num_tokens: outcome.num_tokens,
                past_losses: history.losses().to_vec(),
                past_grad_norms: history.grad_norms().to_vec(),
                first_bad_micro_batch: losses.iter().position(|loss| !loss.is_finite()),
                first_bad_parameter: first_not_finite(&parameters).map(|param| param.name.clone()),
                micro_batches: (0..).zip(&losses).map(trace).collect::<Result<_, _>>()?,
                parameters,
            };
            blackbox::write(&folder, self.plan, &loader, &report)
        });
        Ok(match written {
            Ok(()) => Some(folder),
            Err(error) => {
                self.sinks
                    .progress()
                    .warn(&format!("{error}; step {} has no black box", self.state.step + 1));
                None
            }
        })
    }

    /// The losses of all ranks' micro-batches, by their number in the step.
    fn all_micro_losses(&self, mine: &[f64]) -> Result<Vec<f64>, Error> {
        let assignment = self.recipe.assignment(self.state.step)?;
        let (rounds, degree) = (assignment.num_rounds(), self.collective.degree());
        let mut padded = mine.to_vec();
        padded.resize(rounds, 0.0);
        let all = Tensor::zeros([(rounds * degree) as i64], (Kind::Double, Device::Cpu));
        let mine = Tensor::from_slice(&padded);
        self.collective.all_gather(&mine, &all, "losses of micro-batches")?.wait()?;
        let all: Vec<f64> = Vec::try_from(all).expect("a vector of f64");
        let mut losses = vec![0.0; assignment.num_micro_batches()];
        for rank in 0..degree {
            for (round, index) in assignment.of_rank(rank).enumerate() {
                losses[index] = all[rank * rounds + round];
            }
        }
        Ok(losses)
    }
}

/// Leaves out from now on what the plan excludes.
pub(super) fn exclude(plan: &Plan, state: &mut RunState) -> Result<(), Error> {
    let wanted = plan.guard.exclude_steps.iter().map(|step| step - 1);
    let (excluded, done) = (&mut state.history.excluded, state.step);
    let late = |data_step| Error::ExcludedTooLate { step: data_step + 1, done };
    excluded.extend(wanted, done).map_err(late)
}

/// A copy of the state that a run starts with, if copies are to be kept in memory.
pub(super) fn first_snapshot(plan: &Plan, state: &RunState) -> Option<Snapshot> {
    plan.guard.snapshot_every.filter(|&every| every > 0).map(|_| Snapshot::take(state))
}
