//! Which data is left out: training steps count on, and their data jumps over what is excluded.

use std::collections::BTreeSet;

/// Data steps that are never trained on. Data step `d`, from 0, is what training step `d` sees
/// where nothing is excluded; with exclusions training step `n` sees the `n`th of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions(BTreeSet<u64>);

impl Exclusions {
    /// Of these data steps, from 0.
    pub fn new(data_steps: impl IntoIterator<Item = u64>) -> Self {
        Self(data_steps.into_iter().collect())
    }

    /// Excludes one more.
    pub fn insert(&mut self, data_step: u64) {
        self.0.insert(data_step);
    }

    /// The data step of a training step, both from 0.
    ///
    /// With 3 and 4 excluded, steps 2, 3, 4 see 2, 5, 6.
    pub fn data_step(&self, step: u64) -> u64 {
        let mut data_step = step;
        for &excluded in &self.0 {
            if excluded <= data_step {
                data_step += 1;
            }
        }
        data_step
    }

    /// The data steps of all training steps from `step` on.
    pub fn from_step(&self, step: u64) -> impl Iterator<Item = u64> + Send + use<> {
        let excluded = self.0.clone();
        (self.data_step(step)..).filter(move |data_step| !excluded.contains(data_step))
    }

    /// Those excluded, from 0, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.0.iter().copied()
    }

    /// Adds `wanted`, which a run that has done `step` steps is asked to exclude from now on.
    ///
    /// # Errors
    /// The first one, from 0, that has been trained on already.
    pub fn extend(&mut self, wanted: impl IntoIterator<Item = u64>, step: u64) -> Result<(), u64> {
        let next = self.data_step(step);
        for data_step in wanted {
            if data_step < next && !self.0.contains(&data_step) {
                return Err(data_step);
            }
            self.0.insert(data_step);
        }
        Ok(())
    }
}
