//! The two number types that a slice update computes in.

use half::bf16;
use std::ops::{Add, Div, Mul, Sub};

/// `f32` (training) or `f64` (oracles): plain IEEE 754 arithmetic, round to nearest even.
///
/// No operation is ever fused or reordered (Rust has no implicit contraction), so one element's
/// result has the same bits in a vector lane, in a scalar tail, and at every vector width. Only
/// the payload and sign of a NaN may differ. Sealed: the two types are all there is.
pub trait Real:
    Copy
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + sealed::Sealed
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// The nearest value to `value`.
    fn from_f64(value: f64) -> Self;
    /// The value as `f64`, exactly.
    fn to_f64(self) -> f64;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// Rounds to bf16 as libtorch does: an `f64` goes through `f32` first; NaN becomes 0x7fc0.
    fn to_bf16(self) -> bf16;
}

mod sealed {
    /// Keeps [`super::Real`] to the types of this file.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// Rounds to nearest even by adding just under half a unit of the last kept place.
///
/// `half`'s own conversion branches on NaN, which keeps a loop around it scalar.
#[inline(always)]
fn round_to_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    let last_kept = (bits >> 16) & 1;
    // A finite value carries at most into infinity; only a NaN can wrap, and it is not selected.
    let rounded = bits.wrapping_add(0x7fff + last_kept) >> 16;
    bf16::from_bits(if value.is_nan() { 0x7fc0 } else { rounded as u16 })
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn to_bf16(self) -> bf16 {
        round_to_bf16(self)
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn to_bf16(self) -> bf16 {
        round_to_bf16(self as f32)
    }
}

#[cfg(test)]
mod tests;
