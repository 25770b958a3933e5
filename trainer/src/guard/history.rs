//! What the guards remember from step to step: part of the run's state, so that a run that is
//! resumed decides as one that went on.

use serde::{Deserialize, Serialize};

use super::Exclusions;

/// The past of a run as its guards see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Data that is left out.
    pub excluded: Exclusions,
    /// Steps that counted without their update.
    pub skipped_steps: u64,
    /// Losses of the last updates, oldest first.
    losses: Vec<f64>,
    /// Gradient norms of the same.
    grad_norms: Vec<f64>,
    /// Steps that went wrong since the last good one.
    trips: u64,
    /// The last step that went wrong, from 1; 0 before any.
    tripped_step: u64,
}

/// A [`History`] in a checkpoint, in integers: what is read is bit for bit what was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardRecord {
    /// Data steps that are left out, from 0.
    pub excluded_data_steps: Vec<u64>,
    /// Steps that counted without their update.
    pub skipped_steps: u64,
    /// Losses of the last updates as bits of f64, oldest first.
    pub loss_bits: Vec<u64>,
    /// Gradient norms of the same.
    pub grad_norm_bits: Vec<u64>,
    /// Steps that went wrong since the last good one.
    pub trips: u64,
    /// The last step that went wrong.
    pub tripped_step: u64,
}

impl History {
    /// Losses of the last updates, oldest first.
    pub fn losses(&self) -> &[f64] {
        &self.losses
    }

    /// Gradient norms of the last updates, oldest first.
    pub fn grad_norms(&self) -> &[f64] {
        &self.grad_norms
    }

    /// Notes an update: step number `step`, of which the last `window` are remembered.
    pub fn note_update(&mut self, (step, window): (u64, usize), loss: f64, grad_norm: f64) {
        for (past, value) in [(&mut self.losses, loss), (&mut self.grad_norms, grad_norm)] {
            past.push(value);
            let surplus = past.len().saturating_sub(window);
            past.drain(..surplus);
        }
        if step >= self.tripped_step {
            self.trips = 0;
        }
    }

    /// Notes a step that went wrong, and returns how many have since the last good one. Steps that
    /// a rewind does again are no news: they do not end the row.
    pub fn note_trip(&mut self, step: u64) -> u64 {
        self.trips += 1;
        self.tripped_step = self.tripped_step.max(step);
        self.trips
    }

    /// Takes over what a rewind must not forget from the history that led to it.
    pub fn keep_trips(&mut self, abandoned: &Self) {
        (self.trips, self.tripped_step) = (abandoned.trips, abandoned.tripped_step);
        abandoned.excluded.iter().for_each(|data_step| self.excluded.insert(data_step));
    }

    /// For a checkpoint.
    pub fn to_record(&self) -> GuardRecord {
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect();
        GuardRecord {
            excluded_data_steps: self.excluded.iter().collect(),
            skipped_steps: self.skipped_steps,
            loss_bits: bits(&self.losses),
            grad_norm_bits: bits(&self.grad_norms),
            trips: self.trips,
            tripped_step: self.tripped_step,
        }
    }

    /// From a checkpoint.
    pub fn from_record(record: &GuardRecord) -> Self {
        let values = |bits: &[u64]| bits.iter().map(|&bits| f64::from_bits(bits)).collect();
        Self {
            excluded: Exclusions::new(record.excluded_data_steps.iter().copied()),
            skipped_steps: record.skipped_steps,
            losses: values(&record.loss_bits),
            grad_norms: values(&record.grad_norm_bits),
            trips: record.trips,
            tripped_step: record.tripped_step,
        }
    }
}
