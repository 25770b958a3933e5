//! What can go wrong while sources are mixed.

/// Errors of mixtures.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MixtureError {
    /// There is nothing to mix.
    #[error("the mixture has no {what}, expected at least one")]
    Empty {
        /// "source" or "stage".
        what: &'static str,
    },
    /// Two sources have the same name.
    #[error("two sources are named `{name}`; give each its own name")]
    SameName {
        /// The name.
        name: String,
    },
    /// A stage or a question names a source that is not there.
    #[error("no source is named `{name}`; the sources are {known}")]
    UnknownSource {
        /// The name given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A weight is not a number of at least 0.
    #[error("stage {stage}: the weight of `{name}` is {weight}, expected a number >= 0")]
    Weight {
        /// The stage, from 0.
        stage: usize,
        /// The source.
        name: String,
        /// Its weight.
        weight: f64,
    },
    /// The weights of a stage sum to 0.
    #[error("stage {stage}: the weights sum to 0; give at least one source a positive weight")]
    NoWeight {
        /// The stage, from 0.
        stage: usize,
    },
    /// A share is too small to be kept exactly.
    #[error(
        "stage {stage}: `{name}` has a share of {share:.3e}, below the smallest, {smallest:.3e}; \
         raise its weight or set it to 0"
    )]
    TinyShare {
        /// The stage, from 0.
        stage: usize,
        /// The source.
        name: String,
        /// Its share of the weights.
        share: f64,
        /// The smallest that can be kept.
        smallest: f64,
    },
    /// Stages are not in order.
    #[error("stage {stage} begins at step {found}, expected {expected}")]
    StageOrder {
        /// The stage, from 0.
        stage: usize,
        /// Its first step.
        found: u64,
        /// What it must be: "0" for the first, "more than N" for others.
        expected: String,
    },
    /// The limit of epochs cannot be used.
    #[error("max_epochs of `{name}` is {found}, expected a number > 0")]
    MaxEpochs {
        /// The source.
        name: String,
        /// What was given.
        found: f64,
    },
    /// Every source with a weight has reached its limit of epochs.
    #[error(
        "the data ends at step {step}: every source with a weight has reached its max_epochs; \
         raise max_epochs, add data, or end the run there"
    )]
    Exhausted {
        /// The first step for which there is no data.
        step: u64,
    },
}
