//! Reading and writing one block of a state whatever its storage, within the pass over memory.

use crate::real::Real;
use crate::rounding::round_stochastically;
use crate::state::{Column, QUANTIZED_BLOCK_ELEMENTS};
use std::ops::Range;

impl<T: Real> Column<'_, T> {
    /// Reads the elements of `range`, which lies within one block, to the front of `values`.
    #[inline(always)]
    pub(crate) fn load(&self, range: Range<usize>, values: &mut [T; QUANTIZED_BLOCK_ELEMENTS]) {
        match self {
            Self::Values(slice) => values[..range.len()].copy_from_slice(&slice[range]),
            Self::Bf16(slice) => {
                let slice = &slice[range];
                for (value, stored) in values.iter_mut().zip(slice) {
                    // `half` would quiet a NaN on the way, which costs the vector loop.
                    let bits = u32::from(stored.to_bits()) << 16;
                    *value = T::from_f64(f64::from(f32::from_bits(bits)));
                }
            }
            Self::Quantized { codes, scales, book } => {
                let scale = scales[range.start / QUANTIZED_BLOCK_ELEMENTS];
                let mut read = [0.0; QUANTIZED_BLOCK_ELEMENTS];
                book.dequantize_block(&codes[range.clone()], scale, &mut read[..range.len()]);
                for (value, read) in values.iter_mut().zip(&read[..range.len()]) {
                    *value = T::from_f64(f64::from(*read));
                }
            }
        }
    }

    /// Writes the front of `values` to the elements of `range`, which lies within one block; for
    /// bf16 by the 16 bits of `random` from bit `shift` on.
    #[inline(always)]
    pub(crate) fn store(
        &mut self,
        range: Range<usize>,
        values: &[T; QUANTIZED_BLOCK_ELEMENTS],
        random: &[u32; QUANTIZED_BLOCK_ELEMENTS],
        shift: u32,
    ) {
        let values = &values[..range.len()];
        match self {
            Self::Values(slice) => slice[range].copy_from_slice(values),
            Self::Bf16(slice) => {
                for ((stored, value), random) in slice[range].iter_mut().zip(values).zip(random) {
                    *stored = round_stochastically(value.to_f64() as f32, random >> shift);
                }
            }
            Self::Quantized { codes, scales, book } => {
                let mut rounded = [0.0; QUANTIZED_BLOCK_ELEMENTS];
                for (rounded, value) in rounded.iter_mut().zip(values) {
                    *rounded = value.to_f64() as f32;
                }
                let block = range.start / QUANTIZED_BLOCK_ELEMENTS;
                let rounded = &rounded[..range.len()];
                scales[block] = book.quantize_block(rounded, &mut codes[range]);
            }
        }
    }
}
