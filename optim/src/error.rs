//! What can go wrong in the optimizer room.

use crate::group::Role;
use crate::whole::Part;

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
    /// A phase of the run that does not lie within it.
    #[error(
        "schedule.rewind_to <= schedule.from_step <= run.steps does not hold: {to_step}, \
         {from_step}, {steps}; rewind to an earlier step, or raise run.steps"
    )]
    Phase {
        /// The step that the schedule goes back to; 0 without a rewind.
        to_step: u64,
        /// The first step of the phase.
        from_step: u64,
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
        "buffer {buffer} has {found} elements where the range has {expected}; cut every buffer of \
         an update with the same range"
    )]
    Length {
        /// `grad`, `working`, or the stable name of a state.
        buffer: &'static str,
        /// Elements of the master slice, or what a state needs for them.
        expected: usize,
        /// Elements found.
        found: usize,
    },
    /// The number of state buffers is not that of the rule.
    #[error("rule {rule} takes {expected} state buffers (see Rule::state_specs), found {found}")]
    StateCount {
        /// Stable name of the rule.
        rule: &'static str,
        /// Buffers the rule needs.
        expected: usize,
        /// Buffers given.
        found: usize,
    },
    /// A state buffer is not stored as the rule stores it.
    #[error(
        "state {buffer} has {found}: expected {expected}; allocate it by Rule::state_specs of the \
         parameter's number of elements"
    )]
    StateStorage {
        /// Stable name of the state.
        buffer: &'static str,
        /// What the rule takes.
        expected: &'static str,
        /// What was given.
        found: &'static str,
    },
    /// A range with quantized states begins within a block.
    #[error(
        "the range begins at element {first} of its parameter, which is within a block of 256 \
         whose elements share one scale; begin shards and pieces at multiples of 256"
    )]
    WithinBlock {
        /// Index of the range's first element within its parameter.
        first: usize,
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
    /// A parameter that is neither a vector nor a matrix.
    #[error("a whole parameter of shape {shape:?}: expected one or two dims, all sizes >= 1")]
    WholeShape {
        /// What was given.
        shape: Vec<i64>,
    },
    /// The parts of a parameter do not make up its outputs.
    #[error(
        "the parts of a parameter of shape {shape:?} do not make up its {num_outputs} outputs: \
         found {parts:?}; their num_outputs must add up to that, each a multiple of its \
         outputs_per_block"
    )]
    WholeParts {
        /// Shape of the parameter.
        shape: Vec<i64>,
        /// Outputs of the parameter.
        num_outputs: i64,
        /// What was given.
        parts: Vec<Part>,
    },
    /// A whole-matrix rule was given a parameter that it is not for.
    #[error(
        "rule {rule} does not take a parameter of shape {shape:?} and role {role:?}: expected two \
         dims and role Matrix (see WholeRule::takes); give others to adamw"
    )]
    WholeRole {
        /// Stable name of the rule.
        rule: &'static str,
        /// Shape of the parameter.
        shape: Vec<i64>,
        /// Role of the parameter.
        role: Role,
    },
    /// The number of state tensors is not that of the rule.
    #[error(
        "rule {rule} takes {expected} state tensors for this parameter (see \
         WholeRule::state_specs), found {found}"
    )]
    WholeState {
        /// Stable name of the rule.
        rule: &'static str,
        /// Tensors the rule needs.
        expected: usize,
        /// Tensors given.
        found: usize,
    },
    /// A tensor of a whole-matrix update has the wrong shape or dtype.
    #[error(
        "tensor {tensor} of a whole-matrix update: expected shape {expected:?} and the gradient's \
         dtype, f32 or f64; found shape {found:?}, dtype {dtype:?} and a gradient of dtype \
         {grad_dtype:?}"
    )]
    WholeTensor {
        /// `grad`, `master`, or the stable name of a state.
        tensor: &'static str,
        /// The shape needed; `grad` and `master` may also be flat.
        expected: Vec<i64>,
        /// The shape given.
        found: Vec<i64>,
        /// The dtype given.
        dtype: tch::Kind,
        /// The gradient's dtype.
        grad_dtype: tch::Kind,
    },
    /// A rule that scales its step by the parameter was not given the parameter.
    #[error(
        "rule {rule} reads the master parameter (see WholeRule::needs_master), found none; pass it \
         or choose a step scale of lr alone"
    )]
    WholeMaster {
        /// Stable name of the rule.
        rule: &'static str,
    },
    /// A library of CUDA's is not there.
    #[error(
        "{library} cannot be opened; install it where the loader looks, or update by libtorch's \
         operations"
    )]
    CudaLibrary {
        /// What is missing.
        library: &'static str,
    },
    /// CUDA's driver or run-time compiler refused a call.
    #[error("{function} failed with code {code}: {message}")]
    Cuda {
        /// The function.
        function: &'static str,
        /// Its result.
        code: u32,
        /// CUDA's text, or the compiler's.
        message: String,
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
