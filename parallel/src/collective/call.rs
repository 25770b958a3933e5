//! A call as every rank must make it: what is asked, by which name, of how much of what.

use std::fmt;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// The dtypes that travel between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// 32-bit signed integer.
    I32,
    /// 64-bit signed integer.
    I64,
    /// bfloat16; moved, and reduced only as terms of an f32 sum (ordered reduce-scatter).
    Bf16,
    /// Bytes; moved, not reduced.
    U8,
}

impl Dtype {
    /// All of them, in the order of their codes in MPI call records.
    pub(super) const ALL: [Self; 6] =
        [Self::F32, Self::F64, Self::I32, Self::I64, Self::Bf16, Self::U8];

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }

    fn can_reduce(self) -> bool {
        !matches!(self, Self::Bf16 | Self::U8)
    }

    fn from_kind(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Float => Some(Self::F32),
            Kind::Double => Some(Self::F64),
            Kind::Int => Some(Self::I32),
            Kind::Int64 => Some(Self::I64),
            Kind::BFloat16 => Some(Self::Bf16),
            Kind::Uint8 => Some(Self::U8),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::Bf16 => "bf16",
            Self::U8 => "u8",
        })
    }
}

/// How contributions of several ranks become one. The order is part of the meaning, as float
/// addition is not associative. Integer sums wrap around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reduction {
    /// `((r0 + r1) + r2) + r3`: the sum in rank order, as one rank would add one by one.
    Sum,
    /// `(r0 + r1) + (r2 + r3)`: neighbors in pairs, level by level, an odd one out going up as
    /// it is. Up to 3 ranks it is the same as `Sum`. It continues a pairwise sum inside equal
    /// blocks whose length is a power of two, so that 1, 2 and 4 ranks get the same bits.
    TreeSum,
    /// The largest; NaN if any is NaN.
    Max,
    /// The smallest; NaN if any is NaN.
    Min,
}

/// What the terms of an ordered reduce-scatter are added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Onto {
    /// The output is overwritten: the first term is rank 0's, converted.
    Nothing,
    /// The output's content is the first term.
    Output,
}

/// What a call asks of all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Everyone gets the reduction of everyone's.
    AllReduce(Reduction),
    /// Everyone gets everyone's shard.
    AllGather,
    /// Everyone gets its shard of the reduction.
    ReduceScatter(Reduction),
    /// Everyone gets its shard of one chain of additions in rank order.
    OrderedReduceScatter(Onto),
    /// Everyone gets what `root` has.
    Broadcast {
        /// The rank that gives.
        root: usize,
    },
    /// Everyone gives everyone a part.
    AllToAll,
    /// Everyone waits for everyone.
    Barrier,
}

impl Operation {
    /// The operation's name without reduction and root, as the ledger's totals use it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllReduce(_) => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter(_) => "reduce_scatter",
            Self::OrderedReduceScatter(_) => "ordered_reduce_scatter",
            Self::Broadcast { .. } => "broadcast",
            Self::AllToAll => "all_to_all",
            Self::Barrier => "barrier",
        }
    }

    fn reduces(self) -> bool {
        matches!(self, Self::AllReduce(_) | Self::ReduceScatter(_))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::AllReduce(reduction) | Self::ReduceScatter(reduction) => {
                write!(f, "({reduction:?})")
            }
            Self::OrderedReduceScatter(onto) => write!(f, "(onto {onto:?})"),
            Self::Broadcast { root } => write!(f, "(from {root})"),
            Self::AllGather | Self::AllToAll | Self::Barrier => Ok(()),
        }
    }
}

/// What identifies a call: two ranks are in the same one if all but the sequence is equal.
///
/// The sequence tells calls of one rank apart. Ranks of different groups make different numbers
/// of calls, so it may differ between ranks in the same call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Number of the call on its rank, from 0, calls of groups included.
    pub sequence: u64,
    /// What is asked.
    pub operation: Operation,
    /// The caller's name for it, such as the unit whose gradients are reduced.
    pub name: String,
    /// The input's dtype; `None` for a barrier.
    pub dtype: Option<Dtype>,
    /// Elements of the larger buffer, that is of the whole rather than of a shard.
    pub count: usize,
}

impl Call {
    /// Bytes of the larger buffer.
    pub fn bytes(&self) -> u64 {
        self.count as u64 * self.dtype.map_or(0, Dtype::size_bytes) as u64
    }

    /// Whether two ranks that made these calls are in the same one.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let content = |call: &Self| (call.operation, call.dtype, call.count);
        content(self) == content(other) && self.name == other.name
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequence, operation, name, dtype, count } = self;
        write!(f, "call {sequence}, {operation} `{name}`")?;
        match dtype {
            Some(dtype) => write!(f, " of {count} {dtype}"),
            None => Ok(()),
        }
    }
}

/// The memory of a request. The tensors share their storage with the caller's.
#[derive(Debug)]
pub(super) enum Buffers {
    /// A barrier has none.
    None,
    /// One tensor, read and replaced.
    InPlace(Tensor),
    /// One tensor read, another one filled.
    Between { input: Tensor, output: Tensor },
}

/// A call whose tensors have been checked, ready to [`submit`](super::Collective::submit).
#[derive(Debug)]
pub struct Request {
    pub(super) operation: Operation,
    pub(super) name: String,
    pub(super) dtype: Option<Dtype>,
    pub(super) count: usize,
    pub(super) buffers: Buffers,
    /// Ranks that take part.
    pub(super) degree: usize,
}

impl Request {
    /// A request without data.
    pub(super) fn barrier(name: &str) -> Self {
        let (operation, name) = (Operation::Barrier, name.to_owned());
        Self { operation, name, dtype: None, count: 0, buffers: Buffers::None, degree: 1 }
    }

    /// Bytes that each rank sends, with the algorithms that send least: `(N-1)/N` of the larger
    /// buffer, twice that for an all-reduce.
    pub(super) fn sent_bytes(&self) -> u64 {
        let bytes = self.count as u64 * self.dtype.map_or(0, Dtype::size_bytes) as u64;
        let rounds = if matches!(self.operation, Operation::AllReduce(_)) { 2 } else { 1 };
        rounds * bytes * (self.degree as u64 - 1) / self.degree as u64
    }

    /// A request that replaces `tensor`.
    pub(super) fn in_place(
        operation: Operation,
        tensor: &Tensor,
        name: &str,
        degree: usize,
    ) -> Result<Self> {
        if let Operation::Broadcast { root } = operation
            && root >= degree
        {
            return Err(Error::Root { name: name.to_owned(), root, degree });
        }
        let dtype = check_tensor(operation, name, "in-place", tensor)?;
        let buffers = Buffers::InPlace(tensor.shallow_clone());
        let (name, dtype, count) = (name.to_owned(), Some(dtype), tensor.numel());
        Ok(Self { operation, name, dtype, count, buffers, degree })
    }

    /// A request that reads `input` and fills `output`, on rank `place.0` of `place.1`.
    pub(super) fn between(
        operation: Operation,
        input: &Tensor,
        output: &Tensor,
        name: &str,
        place: (usize, usize),
    ) -> Result<Self> {
        let dtype = check_tensor(operation, name, "input", input)?;
        let output_dtype = check_tensor(operation, name, "output", output)?;
        check_dtypes(operation, name, dtype, output_dtype)?;
        if input.device() != output.device() {
            return Err(Error::DevicesDiffer {
                operation,
                name: name.to_owned(),
                input: format!("{:?}", input.device()),
                output: format!("{:?}", output.device()),
            });
        }
        check_counts(operation, name, (input.numel(), output.numel()), place.1)?;
        check_overlap(operation, name, (input, output), place.0)?;
        let buffers =
            Buffers::Between { input: input.shallow_clone(), output: output.shallow_clone() };
        let count = input.numel().max(output.numel());
        let (name, dtype, degree) = (name.to_owned(), Some(dtype), place.1);
        Ok(Self { operation, name, dtype, count, buffers, degree })
    }
}

/// The dtype of a tensor that can take part in `operation`.
fn check_tensor(
    operation: Operation,
    name: &str,
    operand: &'static str,
    tensor: &Tensor,
) -> Result<Dtype> {
    let name = || name.to_owned();
    let kind = tensor.kind();
    let dtype = Dtype::from_kind(kind).ok_or_else(|| Error::UnsupportedDtype {
        operation,
        name: name(),
        found: format!("{kind:?}"),
    })?;
    if operation.reduces() && !dtype.can_reduce() {
        return Err(Error::UnsupportedReduction { operation, name: name(), dtype });
    }
    if !tensor.is_contiguous() {
        let shape = tensor.size();
        return Err(Error::NotContiguous { operation, name: name(), operand, shape });
    }
    Ok(dtype)
}

/// Checks that elements of `input` may end up in `output`.
fn check_dtypes(operation: Operation, name: &str, input: Dtype, output: Dtype) -> Result<()> {
    let ordered = matches!(operation, Operation::OrderedReduceScatter(_));
    let fits = match (input, output) {
        (Dtype::Bf16 | Dtype::F32, Dtype::F32) | (Dtype::F64, Dtype::F64) if ordered => true,
        _ => !ordered && input == output,
    };
    match fits {
        true => Ok(()),
        false if ordered => Err(Error::OrderedDtypes { name: name.to_owned(), input, output }),
        false => Err(Error::DtypesDiffer { operation, name: name.to_owned(), input, output }),
    }
}

/// Checks the element counts `(input, output)` against the operation.
fn check_counts(
    operation: Operation,
    name: &str,
    (input, output): (usize, usize),
    degree: usize,
) -> Result<()> {
    let (fits, rule) = match operation {
        Operation::AllGather => {
            (input.checked_mul(degree) == Some(output), "output must be degree * input")
        }
        Operation::ReduceScatter(_) | Operation::OrderedReduceScatter(_) => {
            (output.checked_mul(degree) == Some(input), "input must be degree * output")
        }
        _ => (
            input == output && input.is_multiple_of(degree),
            "input and output must be equal and a multiple of degree",
        ),
    };
    if fits {
        return Ok(());
    }
    Err(Error::CountsDiffer { operation, name: name.to_owned(), input, output, degree, rule })
}

/// Refuses shared memory, but for the shard of this rank inside the whole.
fn check_overlap(
    operation: Operation,
    name: &str,
    (input, output): (&Tensor, &Tensor),
    rank: usize,
) -> Result<()> {
    let extent = |tensor: &Tensor| {
        let start = tensor.data_ptr().addr();
        start..start + tensor.numel() * tensor.kind().elt_size_in_bytes()
    };
    let (input, output) = (extent(input), extent(output));
    let apart = input.end <= output.start || output.end <= input.start;
    let own_share = match operation {
        Operation::AllGather => input.start == output.start + rank * input.len(),
        Operation::ReduceScatter(_) => output.start == input.start + rank * output.len(),
        _ => false,
    };
    if apart || own_share {
        return Ok(());
    }
    Err(Error::Overlap { operation, name: name.to_owned() })
}
