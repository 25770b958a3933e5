//! The buffers that rules keep between steps: what each holds, how it is stored, where it starts.

use crate::error::{Error, Result};
use crate::quantize::CodeBook;
use crate::real::Real;
use half::bf16;

/// Elements that share one [`Storage::BlockScale`], counted from the parameter's first element.
pub const QUANTIZED_BLOCK_ELEMENTS: usize = 256;

/// Parameters with fewer elements than this keep full states in a quantized rule, as in
/// bitsandbytes: gains and biases cost next to nothing, and they are what 8 bits hurt most.
pub const MIN_QUANTIZED_ELEMENTS: usize = 4096;

/// What a state buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateKind {
    /// Moving average of the gradient.
    FirstMoment,
    /// Scale of each block of a quantized [`StateKind::FirstMoment`].
    FirstMomentScale,
    /// Moving average of the squared gradient.
    SecondMoment,
    /// Scale of each block of a quantized [`StateKind::SecondMoment`].
    SecondMomentScale,
    /// Moving average of estimates of the Hessian's diagonal.
    Hessian,
    /// Schedule-free's base iterate `z`, which plain steps move.
    BaseIterate,
}

impl StateKind {
    /// The name in checkpoints, which never changes; torch's, or that of the rule's reference
    /// implementation.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstMoment => "exp_avg",
            Self::FirstMomentScale => "exp_avg_absmax",
            Self::SecondMoment => "exp_avg_sq",
            Self::SecondMomentScale => "exp_avg_sq_absmax",
            Self::Hessian => "hessian",
            Self::BaseIterate => "z",
        }
    }

    /// What the buffer holds before the first step.
    pub fn start(self) -> Start {
        match self {
            Self::BaseIterate => Start::Master,
            _ => Start::Zero,
        }
    }

    /// The codes of this state where its storage is [`Storage::Codes`]: signed unless it is an
    /// average of squares.
    pub fn code_book(self) -> &'static CodeBook {
        match self {
            Self::SecondMoment => CodeBook::unsigned(),
            _ => CodeBook::signed(),
        }
    }
}

/// What a state holds before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// All bytes zero, whatever the storage.
    Zero,
    /// A copy of the master parameters.
    Master,
}

/// How a state buffer is stored, for a parameter (or range) of `n` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// `[n]` in the dtype of the master.
    Accumulation,
    /// `[n]` bf16, rounded stochastically (see [`crate::StateDtype`]).
    Bf16,
    /// `[n]` u8: indices into [`StateKind::code_book`]. The next state is their
    /// [`Storage::BlockScale`].
    Codes,
    /// `[ceil(n / QUANTIZED_BLOCK_ELEMENTS)]` f32: what the codes of a block are multiplied by.
    BlockScale,
}

impl Storage {
    /// Number of elements of the buffer of a parameter of `numel` elements.
    pub fn num_elements(self, numel: usize) -> usize {
        match self {
            Self::BlockScale => numel.div_ceil(QUANTIZED_BLOCK_ELEMENTS),
            Self::Accumulation | Self::Bf16 | Self::Codes => numel,
        }
    }

    /// What error messages call it.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Accumulation => "values of the master's dtype",
            Self::Bf16 => "bf16 values",
            Self::Codes => "u8 codes",
            Self::BlockScale => "f32 scales, one a block",
        }
    }
}

/// How a rule that offers the choice stores its states; the arithmetic is that of the master.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateDtype {
    /// In the master's dtype: f32 in training.
    #[default]
    Accumulation,
    /// Half the bytes: bf16, rounded up with a probability equal to the dropped fraction (Gupta et
    /// al. 2015, arXiv:1502.02551, section 3), for rounded to nearest an average would stand still
    /// where it moves by less than 1/512 of itself a step. The random bits follow from
    /// [`crate::Scalars::rounding_seed`], the step and the element's index in its parameter.
    Bf16,
}

/// One state buffer of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSpec {
    /// What it holds; unique within a parameter.
    pub kind: StateKind,
    /// How it is stored.
    pub storage: Storage,
}

impl StateSpec {
    pub(crate) const fn new(kind: StateKind, storage: Storage) -> Self {
        Self { kind, storage }
    }
}

/// One range of a state buffer on the CPU; each variant is the [`Storage`] of its name.
#[derive(Debug)]
pub enum StateSlice<'a, T: Real> {
    /// `[n]`, for [`Storage::Accumulation`].
    Values(&'a mut [T]),
    /// `[n]`, for [`Storage::Bf16`].
    Bf16(&'a mut [bf16]),
    /// `[n]`, for [`Storage::Codes`].
    Codes(&'a mut [u8]),
    /// `[ceil(n / QUANTIZED_BLOCK_ELEMENTS)]`, for [`Storage::BlockScale`].
    BlockScale(&'a mut [f32]),
}

impl<'a, T: Real> StateSlice<'a, T> {
    /// Its storage.
    pub fn storage(&self) -> Storage {
        match self {
            Self::Values(_) => Storage::Accumulation,
            Self::Bf16(_) => Storage::Bf16,
            Self::Codes(_) => Storage::Codes,
            Self::BlockScale(_) => Storage::BlockScale,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Values(slice) => slice.len(),
            Self::Bf16(slice) => slice.len(),
            Self::Codes(slice) => slice.len(),
            Self::BlockScale(slice) => slice.len(),
        }
    }

    /// Cuts into elements `0..mid` and what follows; `mid` is between two blocks, or the end.
    pub fn split_at(self, mid: usize) -> (Self, Self) {
        fn cut<T>(slice: &mut [T], at: usize) -> (&mut [T], &mut [T]) {
            slice.split_at_mut(at)
        }
        match self {
            Self::Values(slice) => {
                let (head, tail) = cut(slice, mid);
                (Self::Values(head), Self::Values(tail))
            }
            Self::Bf16(slice) => {
                let (head, tail) = cut(slice, mid);
                (Self::Bf16(head), Self::Bf16(tail))
            }
            Self::Codes(slice) => {
                let (head, tail) = cut(slice, mid);
                (Self::Codes(head), Self::Codes(tail))
            }
            Self::BlockScale(slice) => {
                let (head, tail) = cut(slice, Storage::BlockScale.num_elements(mid));
                (Self::BlockScale(head), Self::BlockScale(tail))
            }
        }
    }
}

/// A state that an update reads and writes, whatever its storage: codes and scales are one column.
pub(crate) enum Column<'a, T: Real> {
    Values(&'a mut [T]),
    Bf16(&'a mut [bf16]),
    Quantized { codes: &'a mut [u8], scales: &'a mut [f32], book: &'static CodeBook },
}

/// Pairs slices with what the rule takes, after comparing storages and lengths with those of `n`
/// elements.
pub(crate) fn columns<'a, T: Real, const STATES: usize>(
    rule: &'static str,
    specs: &[StateSpec],
    slices: Vec<StateSlice<'a, T>>,
    n: usize,
) -> Result<[Column<'a, T>; STATES]> {
    let (expected, found) = (specs.len(), slices.len());
    for (spec, slice) in specs.iter().zip(&slices) {
        check(*spec, slice.storage(), slice.len(), n)?;
    }
    let mut columns = Vec::with_capacity(STATES);
    let mut pairs = specs.iter().zip(slices);
    while let Some((spec, slice)) = pairs.next() {
        columns.push(match (slice, spec.storage) {
            (StateSlice::Values(values), _) => Column::Values(values),
            (StateSlice::Bf16(values), _) => Column::Bf16(values),
            (StateSlice::Codes(codes), _) => match pairs.next() {
                Some((_, StateSlice::BlockScale(scales))) => {
                    Column::Quantized { codes, scales, book: spec.kind.code_book() }
                }
                _ => return Err(Error::StateCount { rule, expected, found }),
            },
            (StateSlice::BlockScale(_), _) => unreachable!("a scale follows its codes"),
        });
    }
    if expected != found {
        return Err(Error::StateCount { rule, expected, found });
    }
    columns.try_into().map_err(|_| Error::StateCount { rule, expected, found })
}

/// Compares the storage and the length of one state buffer with what the rule takes.
pub(crate) fn check(spec: StateSpec, storage: Storage, found: usize, n: usize) -> Result<()> {
    let buffer = spec.kind.name();
    if storage != spec.storage {
        let (expected, found) = (spec.storage.describe(), storage.describe());
        return Err(Error::StateStorage { buffer, expected, found });
    }
    let expected = spec.storage.num_elements(n);
    if found != expected {
        return Err(Error::Length { buffer, expected, found });
    }
    Ok(())
}
