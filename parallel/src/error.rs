//! What can go wrong between ranks, as one enum whose messages name the thing, what was
//! expected, what was found and the remedy.

mod gpu;

pub use gpu::GpuError;

use crate::collective::{Call, Dtype, Operation};

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the `parallel` room.
///
/// It is `Clone`, because one failed collective is the outcome of every call after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor given to a collective has gaps or a permuted order in memory.
    #[error(
        "{operation} `{name}`: the {operand} tensor of shape {shape:?} is not contiguous; \
         call contiguous() on it, or pass a narrow of a flat buffer"
    )]
    NotContiguous {
        /// The operation that was asked for.
        operation: Operation,
        /// The caller's name for the call.
        name: String,
        /// `input`, `output` or `in-place`.
        operand: &'static str,
        /// The shape of the tensor.
        shape: Vec<i64>,
    },
    /// A tensor's dtype cannot travel.
    #[error(
        "{operation} `{name}`: dtype {found} is not supported; \
         use f32, f64, i32, i64, bf16 (movement only) or u8 (movement only)"
    )]
    UnsupportedDtype {
        /// The operation that was asked for.
        operation: Operation,
        /// The caller's name for the call.
        name: String,
        /// libtorch's name of the dtype.
        found: String,
    },
    /// A reduction of a dtype in which sums would lose what they are for.
    #[error(
        "{operation} `{name}`: {dtype} tensors can be moved but not reduced; \
         reduce in f32 and convert the result"
    )]
    UnsupportedReduction {
        /// The operation that was asked for.
        operation: Operation,
        /// The caller's name for the call.
        name: String,
        /// The dtype of the tensor.
        dtype: Dtype,
    },
    /// Input and output differ in dtype.
    #[error("{operation} `{name}`: input is {input} and output is {output}; they must be the same")]
    DtypesDiffer {
        /// The operation that was asked for.
        operation: Operation,
        /// The caller's name for the call.
        name: String,
        /// Dtype of the input.
        input: Dtype,
        /// Dtype of the output.
        output: Dtype,
    },
    /// Dtypes between which an ordered reduce-scatter would lose bits, or is not made for.
    #[error(
        "ordered_reduce_scatter `{name}`: input is {input} and output is {output}; \
         give bf16 or f32 input with f32 output, or f64 input with f64 output"
    )]
    OrderedDtypes {
        /// The caller's name for the call.
        name: String,
        /// Dtype of the input.
        input: Dtype,
        /// Dtype of the output.
        output: Dtype,
    },
    /// Input and output lie on different devices.
    #[error("{operation} `{name}`: input is on {input} and output on {output}; move one of them")]
    DevicesDiffer {
        /// The operation that was asked for.
        operation: Operation,
        /// The caller's name for the call.
        name: String,
        /// Device of the input.
        input: String,
        /// Device of the output.
        output: String,
    },
    /// The element counts of input and output do not fit the operation.
    #[error(
        "{operation} `{name}`: {input} input elements do not fit {output} output elements; \
         {rule} with {degree} ranks"
    )]
    CountsDiffer {
        /// The operation that was asked for.
        operation: Operation,
        /// The caller's name for the call.
        name: String,
        /// Elements of the input.
        input: usize,
        /// Elements of the output.
        output: usize,
        /// Ranks of the collective.
        degree: usize,
        /// What must hold between the counts.
        rule: &'static str,
    },
    /// Input and output share memory in a way the operation cannot work with.
    #[error(
        "{operation} `{name}`: input and output overlap in memory; give separate tensors, or for \
         all_gather and reduce_scatter exactly this rank's share of the larger one"
    )]
    Overlap {
        /// The operation that was asked for.
        operation: Operation,
        /// The caller's name for the call.
        name: String,
    },
    /// A broadcast from a rank that does not exist.
    #[error("broadcast `{name}`: root {root} is not a rank; there are {degree} (0 to {degree}-1)")]
    Root {
        /// The caller's name for the call.
        name: String,
        /// The root that was asked for.
        root: usize,
        /// Ranks of the collective.
        degree: usize,
    },
    /// A list of ranks that cannot be a group of this rank.
    #[error(
        "group `{name}`: {ranks:?} is not a group of rank {rank} of {degree}; \
         give ascending ranks below {degree} with {rank} among them"
    )]
    Group {
        /// The caller's name for the group.
        name: String,
        /// The ranks that were given.
        ranks: Vec<usize>,
        /// This rank in the parent.
        rank: usize,
        /// Ranks of the parent.
        degree: usize,
    },
    /// The groups of all ranks are not a partition of the parent's ranks.
    #[error(
        "group `{name}`: rank {first_rank} gives {first:?} but rank {second_rank} gives \
         {second:?}; all ranks of a group must give the same ranks"
    )]
    GroupsDiffer {
        /// The caller's name for the group.
        name: String,
        /// The lowest rank (in the parent) with a member that gives other ranks.
        first_rank: usize,
        /// What it gives.
        first: Vec<usize>,
        /// The first of those members.
        second_rank: usize,
        /// What that one gives.
        second: Vec<usize>,
    },
    /// Two ranks are not in the same call. Ranks are those of the whole run.
    #[error(
        "ranks disagree: rank {first_rank} is in {first} but rank {second_rank} is in {second}; \
         every rank must make the same calls in the same order"
    )]
    CallsDiffer {
        /// The first rank, to which the others are compared.
        first_rank: usize,
        /// What that rank called.
        first: Box<Call>,
        /// The first rank whose call differs.
        second_rank: usize,
        /// What that one called.
        second: Box<Call>,
    },
    /// A peer, by its rank in the whole run, ended before it made a call that this rank waits in.
    #[error("rank {rank} left before it joined {call}; look for its own error")]
    PeerLeft {
        /// The rank that is gone.
        rank: usize,
        /// The call that cannot finish.
        call: Box<Call>,
    },
    /// An MPI function returned an error code.
    #[error("{function} failed with code {code} ({message}); the ranks cannot go on together")]
    Mpi {
        /// The MPI function.
        function: &'static str,
        /// Its return code.
        code: i32,
        /// MPI's own text for the code.
        message: String,
    },
    /// MPI was already started in this process.
    #[error("MPI is already initialized in this process; connect once and pass the collective on")]
    MpiInitialized,
    /// A rank cannot take part in NCCL's collectives.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// An NCCL function returned an error code, or reported a failure of the network later.
    #[error("{function} failed with code {code} ({message}); the ranks cannot go on together")]
    Nccl {
        /// The NCCL function.
        function: &'static str,
        /// Its `ncclResult_t`.
        code: i32,
        /// NCCL's own text for the code.
        message: String,
    },
    /// A function of CUDA's driver, or of its run-time compiler, returned an error code.
    #[error("{function} failed with code {code} ({message}); see nvidia-smi and dmesg for the GPU")]
    Cuda {
        /// The function.
        function: &'static str,
        /// Its code.
        code: u32,
        /// CUDA's own text for the code.
        message: String,
    },
    /// The communication thread could not be started, or is gone.
    #[error("the communication thread is not running: {reason}")]
    Thread {
        /// Why.
        reason: String,
    },
    /// libtorch refused an operation on a buffer.
    #[error("{operation} `{name}`: libtorch failed: {message}")]
    Tensor {
        /// The operation that was asked for.
        operation: Operation,
        /// The caller's name for the call.
        name: String,
        /// libtorch's text.
        message: String,
    },
    /// The launcher and MPI do not agree on who is there.
    #[error(
        "{launcher} says rank {rank} of {world_size}, MPI says rank {mpi_rank} of {mpi_size}; \
         start with the mpirun of the MPI library that grove was built with"
    )]
    LaunchDiffersFromMpi {
        /// The launcher whose variables were read.
        launcher: &'static str,
        /// Rank by the environment.
        rank: usize,
        /// World size by the environment.
        world_size: usize,
        /// Rank by MPI.
        mpi_rank: usize,
        /// World size by MPI.
        mpi_size: usize,
    },
    /// An environment variable is not the number it should be.
    #[error("environment variable {variable} = {found:?} is not {expected}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// Its value.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// One variable of a launcher is set and another is missing.
    #[error("environment variable {present} is set but {missing} is not; {remedy}")]
    VariableMissing {
        /// The variable that shows which launcher is at work.
        present: &'static str,
        /// The one that should be there too.
        missing: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Two variables contradict each other.
    #[error(
        "environment variables contradict: {smaller_variable} = {smaller} must be {relation} \
         {larger_variable} = {larger}"
    )]
    VariablesContradict {
        /// The variable that should hold the smaller number.
        smaller_variable: &'static str,
        /// Its value.
        smaller: usize,
        /// `below` or `at most`.
        relation: &'static str,
        /// The variable that should hold the larger number.
        larger_variable: &'static str,
        /// Its value.
        larger: usize,
    },
    /// `srun` started several tasks that cannot talk to each other.
    #[error(
        "srun started {tasks} tasks without an MPI plugin, so each would train alone; \
         use srun --mpi=pmix (or --mpi=pmi2), or mpirun inside the allocation"
    )]
    SrunWithoutMpi {
        /// Tasks in the step.
        tasks: usize,
    },
    /// More ranks than micro-batches.
    #[error(
        "{degree} ranks share {num_micro_batches} micro-batches, so that {idle} of them would \
         never have work; use at least {degree} micro-batches, or at most {num_micro_batches} ranks"
    )]
    MicroBatches {
        /// Micro-batches in a step, all ranks together.
        num_micro_batches: usize,
        /// Ranks that share them.
        degree: usize,
        /// Ranks without work.
        idle: usize,
    },
    /// A step without micro-batches, or a group without ranks.
    #[error("{what} is 0; it must be at least 1")]
    Zero {
        /// Which number.
        what: &'static str,
    },
    /// A unit names one parameter twice.
    #[error("unit `{unit}` has parameter `{param}` twice; names must differ within a unit")]
    DuplicateParam {
        /// The unit.
        unit: String,
        /// The name that comes twice.
        param: String,
    },
    /// A parameter whose shape holds no elements.
    #[error(
        "parameter `{param}` of unit `{unit}` has shape {shape:?}; \
         expected at least one dim, each at least 1, and a product that fits in memory"
    )]
    Shape {
        /// The unit.
        unit: String,
        /// The parameter.
        param: String,
        /// Its shape.
        shape: Vec<i64>,
    },
    /// A parameter that the unit does not have.
    #[error("unit `{unit}` has no parameter `{param}`; it has {known}")]
    UnknownParam {
        /// The unit.
        unit: String,
        /// The name that was asked for.
        param: String,
        /// The names there are.
        known: String,
    },
}
