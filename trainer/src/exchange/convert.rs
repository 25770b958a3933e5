//! Values from one element type to another, as little-endian bytes.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::checkpoint::Dtype;

/// Bytes that are looked at at a time; a multiple of every element's size.
const CHUNK_BYTES: usize = 1 << 16;

/// The values of `bytes`, of type `from`, as `to`: borrowed if these are the same, else rounded to
/// the nearest, ties to even. From fp64 to bf16 they are rounded twice, by way of fp32.
///
/// # Panics
/// If `from` is [`Dtype::U8`], or `to` is that or [`Dtype::F16`]: nothing is written in these.
pub(super) fn convert(bytes: &[u8], from: Dtype, to: Dtype) -> Cow<'_, [u8]> {
    if from == to {
        return Cow::Borrowed(bytes);
    }
    Cow::Owned(match from {
        Dtype::U8 => unreachable!("bytes are no weights"),
        Dtype::Bf16 => narrowed(bytes, |x| f64::from(bf16::from_le_bytes(x)), to),
        Dtype::F16 => narrowed(bytes, |x| f64::from(f16::from_le_bytes(x)), to),
        Dtype::F32 => narrowed(bytes, |x| f64::from(f32::from_le_bytes(x)), to),
        Dtype::F64 => narrowed(bytes, f64::from_le_bytes, to),
    })
}

/// How many values are infinite or not numbers.
pub(super) fn count_not_finite(bytes: &[u8], dtype: Dtype) -> usize {
    let count = |chunk: &[u8]| {
        let values = convert(chunk, dtype, Dtype::F64);
        let (values, _) = values.as_chunks();
        values.iter().filter(|value| !f64::from_le_bytes(**value).is_finite()).count()
    };
    bytes.chunks(CHUNK_BYTES).map(count).sum()
}

fn narrowed<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64, to: Dtype) -> Vec<u8> {
    match to {
        Dtype::U8 | Dtype::F16 => unreachable!("nothing is written in {to:?}"),
        // Not bf16::from_f64, which looks at the upper half of a number only and misses ties.
        Dtype::Bf16 => each(bytes, |x| bf16::from_f32(read(x) as f32).to_le_bytes()),
        Dtype::F32 => each(bytes, |x| (read(x) as f32).to_le_bytes()),
        Dtype::F64 => each(bytes, |x| read(x).to_le_bytes()),
    }
}

fn each<const N: usize, const M: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> [u8; M]) -> Vec<u8> {
    let (elements, _) = bytes.as_chunks::<N>();
    let mut out = Vec::with_capacity(elements.len() * M);
    elements.iter().for_each(|element| out.extend_from_slice(&of(*element)));
    out
}
