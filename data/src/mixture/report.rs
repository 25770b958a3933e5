//! How much of each source a run uses, and how often it repeats it.

use super::Mixture;

/// A source's part in the first steps of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceReport {
    /// The source.
    pub name: String,
    /// Rows drawn from it.
    pub num_samples: u64,
    /// Its share of all rows.
    pub share: f64,
    /// How often its tokens are gone through: 1.5 means that half of them are seen twice.
    pub epochs: f64,
    /// Rows in one epoch.
    pub samples_per_epoch: u64,
    /// Its training tokens.
    pub num_tokens: u64,
}

impl Mixture {
    /// What the steps before `num_steps` draw from each source.
    pub fn report(&self, num_steps: u64) -> Vec<SourceReport> {
        let counts = self.counts(num_steps);
        let total: u64 = counts.iter().sum();
        let report = |(source, num_samples): (&super::Member, u64)| {
            let samples_per_epoch = source.order.num_windows();
            let range = &source.part().range;
            SourceReport {
                name: source.name.clone(),
                num_samples,
                share: num_samples as f64 / total.max(1) as f64,
                epochs: num_samples as f64 / samples_per_epoch as f64,
                samples_per_epoch,
                num_tokens: range.end - range.start,
            }
        };
        self.sources.iter().zip(counts).map(report).collect()
    }
}
