//! What can go wrong in the optimizer room.

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// Every error of this room; `key` is the full key of the run's file, as in
/// `configs/reference.toml`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A hyper-parameter of the configuration is not in its range.
    #[error("{key} = {value} is out of range: expected {expected}; a usual value is {usual}")]
    OutOfRange {
        /// Full key, such as `optim.betas[0]`.
        key: String,
        /// What the file says.
        value: f64,
        /// The range, as an inequality.
        expected: &'static str,
        /// A value of the literature.
        usual: f64,
    },
    /// Warm-up and cooldown together do not fit into the run.
    #[error(
        "schedule.warmup_steps + cooldown_steps <= run.steps does not hold: {warmup_steps} + \
         {cooldown_steps} > {steps}; lower schedule.warmup_steps or schedule.cooldown_fraction, or \
         raise run.steps"
    )]
    ScheduleTooLong {
        /// Steps of linear warm-up.
        warmup_steps: u64,
        /// Steps of cooldown: `round(cooldown_fraction * steps)`, at least 1 (0 without one).
        cooldown_steps: u64,
        /// Steps of the whole run.
        steps: u64,
    },
    /// A per-step number given to an update cannot be used.
    #[error("the {name} of an update is {value}: expected {expected}")]
    Scalar {
        /// Name of the field of `Scalars`, or a product of fields.
        name: &'static str,
        /// What was given.
        value: f64,
        /// The range, as an inequality.
        expected: &'static str,
    },
    /// A buffer does not match the master parameters it belongs to.
    #[error(
        "buffer {buffer} has {found} elements where master has {expected}; cut every buffer of an \
         update with the same range"
    )]
    Length {
        /// `grad`, `working`, or the stable name of a state.
        buffer: &'static str,
        /// Elements of the master slice.
        expected: usize,
        /// Elements found.
        found: usize,
    },
    /// The number of state buffers is not that of the rule.
    #[error("rule {rule} takes {expected} state buffers (see Rule::state_kinds), found {found}")]
    StateCount {
        /// Stable name of the rule.
        rule: &'static str,
        /// Buffers the rule needs.
        expected: usize,
        /// Buffers given.
        found: usize,
    },
    /// The blocks of a squared norm do not form nodes of the fixed summation tree.
    #[error(
        "block_elements = {block_elements} is not a power of two that is at least {leaf_elements}"
    )]
    BlockElements {
        /// What was given.
        block_elements: usize,
        /// Elements of a leaf of the tree.
        leaf_elements: usize,
    },
    /// The output of a squared norm has the wrong length.
    #[error(
        "{num_values} values in blocks of {block_elements} have {expected} sums, found room for \
         {found}; size it with num_blocks"
    )]
    BlockCount {
        /// Number of values to sum.
        num_values: usize,
        /// Elements a block.
        block_elements: usize,
        /// Sums needed.
        expected: usize,
        /// Sums the output has room for.
        found: usize,
    },
    /// libtorch refused a tensor operation of an update.
    #[error("tensor update failed: {0}")]
    Tensor(#[from] tch::TchError),
}

/// `Ok` if `holds`, else [`Error::OutOfRange`] for `key`.
///
/// Callers write `holds` as a positive comparison, so that NaN does not pass.
pub(crate) fn require(
    holds: bool,
    key: &str,
    value: f64,
    expected: &'static str,
    usual: f64,
) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::OutOfRange { key: key.to_owned(), value, expected, usual })
}
