//! Reading and writing a state of the tensor path whatever its storage: the twin of `column.rs`, of
//! whole tensors and with the same codes and random bits.

use crate::error::{Error, Result};
use crate::quantize::CodeBook;
use crate::rounding::{self, Rounding};
use crate::state::{self, QUANTIZED_BLOCK_ELEMENTS, StateSpec, Storage};
use tch::{Kind, Tensor};

const BLOCK: i64 = QUANTIZED_BLOCK_ELEMENTS as i64;
/// A word of 32 bits in a tensor of 64.
const WORD: i64 = 0xffff_ffff;

/// A state that a tensor update reads and writes: codes and scales are one column.
pub(crate) enum TensorColumn<'a> {
    Values(&'a mut Tensor),
    Bf16(&'a mut Tensor),
    Quantized { codes: &'a mut Tensor, scales: &'a mut Tensor, book: &'static CodeBook },
}

/// Pairs tensors with what the rule takes, after comparing dtypes and lengths with those of
/// `master`.
pub(crate) fn tensor_columns<'a, const STATES: usize>(
    rule: &'static str,
    specs: &[StateSpec],
    tensors: Vec<&'a mut Tensor>,
    master: &Tensor,
) -> Result<[TensorColumn<'a>; STATES]> {
    let (expected, found) = (specs.len(), tensors.len());
    for (spec, tensor) in specs.iter().zip(&tensors) {
        check_state(*spec, tensor, master)?;
    }
    let mut columns = Vec::with_capacity(STATES);
    let mut pairs = specs.iter().zip(tensors);
    while let Some((spec, tensor)) = pairs.next() {
        columns.push(match spec.storage {
            Storage::Accumulation => TensorColumn::Values(tensor),
            Storage::Bf16 => TensorColumn::Bf16(tensor),
            Storage::Codes => match pairs.next() {
                Some((_, scales)) => {
                    let book = spec.kind.code_book();
                    TensorColumn::Quantized { codes: tensor, scales, book }
                }
                None => return Err(Error::StateCount { rule, expected, found }),
            },
            Storage::BlockScale => unreachable!("a scale follows its codes"),
        });
    }
    if expected != found {
        return Err(Error::StateCount { rule, expected, found });
    }
    columns.try_into().map_err(|_| Error::StateCount { rule, expected, found })
}

/// Compares a state's dtype and length with what the rule takes.
pub(crate) fn check_state(spec: StateSpec, tensor: &Tensor, master: &Tensor) -> Result<()> {
    let storage = match tensor.kind() {
        Kind::Uint8 => Storage::Codes,
        Kind::BFloat16 => Storage::Bf16,
        Kind::Float if spec.storage == Storage::BlockScale => Storage::BlockScale,
        _ => Storage::Accumulation,
    };
    state::check(spec, storage, tensor.numel(), master.numel())
}

impl TensorColumn<'_> {
    /// `[n]` in dtype `kind`; the state itself where it is stored so.
    pub(crate) fn load(&self, kind: Kind) -> Result<Tensor> {
        match self {
            Self::Values(tensor) => Ok(tensor.shallow_clone()),
            Self::Bf16(tensor) => Ok(tensor.f_to_kind(kind)?),
            Self::Quantized { codes, scales, book } => {
                let n = codes.numel() as i64;
                let values = Tensor::f_from_slice(book.values())?.f_to_device(codes.device())?;
                let values = values.f_index_select(0, &codes.f_view([n])?.f_to_kind(Kind::Int)?)?;
                let scales = scales.f_view([-1])?.f_repeat_interleave_self_int(BLOCK, 0, None)?;
                Ok(values.f_mul(&scales.f_narrow(0, 0, n)?)?.f_to_kind(kind)?)
            }
        }
    }

    /// Writes `[n]` values; for bf16 by the 16 bits of `random` from bit `shift` on. Values that
    /// are the state itself are there already.
    pub(crate) fn store(self, values: &Tensor, random: Option<&Tensor>, shift: i64) -> Result<()> {
        match self {
            Self::Values(_) => Ok(()),
            Self::Bf16(tensor) => {
                let random = random.expect("finish draws bits where a state is bf16");
                Ok(tensor
                    .f_copy_(&round_stochastically(values, random, shift)?.f_view_as(tensor)?)?)
            }
            Self::Quantized { codes, scales, book } => quantize(values, codes, scales, book),
        }
    }
}

/// [`CodeBook::quantize`] for tensors.
fn quantize(
    values: &Tensor,
    codes: &mut Tensor,
    scales: &mut Tensor,
    book: &CodeBook,
) -> Result<()> {
    let n = values.numel() as i64;
    let values = values.f_view([n])?.f_to_kind(Kind::Float)?.f_nan_to_num(0.0, 0.0, 0.0)?;
    let padding = (BLOCK - n % BLOCK) % BLOCK;
    let blocks = values.f_constant_pad_nd([0, padding])?.f_view([-1, BLOCK])?;
    let mut largest = blocks.f_abs()?.f_amax([1], false)?;
    let is_zero = largest.f_lt(f64::from(f32::MIN_POSITIVE))?;
    let _ = largest.f_masked_fill_(&is_zero, 0.0)?;
    let inverse = largest.f_reciprocal()?.f_masked_fill(&is_zero, 0.0)?;
    let unit = blocks.f_mul(&inverse.f_unsqueeze(1)?)?.f_view([-1])?.f_narrow(0, 0, n)?;
    let thresholds = Tensor::f_from_slice(book.thresholds())?.f_to_device(values.device())?;
    codes.f_copy_(&unit.f_bucketize(&thresholds, true, true)?.f_view_as(codes)?)?;
    scales.f_copy_(&largest.f_view_as(scales)?)?;
    Ok(())
}

impl Rounding {
    /// [`Rounding::fill`] for the elements of a parameter from `first` on, as many as in `like` and
    /// on its device: `[n]` i64 in `0..2^32`.
    pub(crate) fn random_tensor(self, first: usize, like: &Tensor) -> Result<Tensor> {
        let first = first as i64;
        let options = (Kind::Int64, like.device());
        let index = Tensor::f_arange_start(first, first + like.numel() as i64, options)?;
        let high = mul_words(&shift_right(&index, 32)?, rounding::HIGH_MULTIPLIER)?;
        let [low_key, high_key] = self.keys().map(i64::from);
        let mut x = index.f_bitwise_and(WORD)?.f_bitwise_xor_tensor(&high)?;
        let _ = x.f_bitwise_xor_(low_key)?;
        x = mul_words(&x.f_bitwise_xor_tensor(&shift_right(&x, 16)?)?, rounding::MULTIPLIERS[0])?;
        x = x.f_bitwise_xor_tensor(&shift_right(&x, 15)?)?.f_add_scalar(high_key)?;
        x = mul_words(&x.f_bitwise_and(WORD)?, rounding::MULTIPLIERS[1])?;
        Ok(x.f_bitwise_xor_tensor(&shift_right(&x, 16)?)?)
    }
}

fn shift_right(words: &Tensor, bits: i64) -> Result<Tensor> {
    Ok(words.f_bitwise_right_shift_tensor_scalar(bits)?)
}

/// The low word of a product of words, by halves so that no product leaves 63 bits.
fn mul_words(words: &Tensor, factor: u32) -> Result<Tensor> {
    let low = words.f_mul_scalar(i64::from(factor & 0xffff))?;
    let high = words.f_mul_scalar(i64::from(factor >> 16))?.f_bitwise_and(0xffff_i64)?;
    Ok(high.f_mul_scalar(1_i64 << 16)?.f_add_(&low)?.f_bitwise_and(WORD)?)
}

/// [`rounding::round_stochastically`] for tensors.
fn round_stochastically(values: &Tensor, random: &Tensor, shift: i64) -> Result<Tensor> {
    let values = values.f_view([-1])?.f_to_kind(Kind::Float)?;
    let random = shift_right(random, shift)?.f_bitwise_and(0xffff_i64)?.f_to_kind(Kind::Int)?;
    let is_nan = values.f_isnan()?;
    // A NaN could overflow here, and is put back below.
    let bits = values.f_masked_fill(&is_nan, 0.0)?.f_view_dtype(Kind::Int)?.f_add(&random)?;
    let kept = bits.f_bitwise_and(-0x1_0000_i64)?.f_view_dtype(Kind::Float)?;
    Ok(kept.f_masked_fill(&is_nan, f64::NAN)?.f_to_kind(Kind::BFloat16)?)
}
