//! The few vector operations that the attention kernel is written in, and who provides them.
//!
//! An operand of a product is stored as 32-bit words of [`Isa::PAIR`] elements that are neighbors
//! along the summed dimension: one f32, or two bf16 (the form `vdpbf16ps` wants). Seen as words, the
//! products of both kinds are the same loops.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has the one contract stated at the trait Isa"
)]
#![allow(unsafe_code, reason = "vector intrinsics and raw loads")]

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod portable;

#[cfg(test)]
mod tests;

/// Work that runs with an instruction set's features switched on.
pub(super) trait Task {
    /// Does the work; must be `#[inline(always)]` all the way down, so that it is compiled with the
    /// features of the function it is called from.
    ///
    /// # Safety
    /// As for [`Isa`].
    unsafe fn run<I: Isa>(self);
}

/// One instruction set: vectors of [`Isa::LANES`] f32.
///
/// # Safety
/// For every function: the processor has the features of the implementing type, and each pointer is
/// valid for what the function says it reads or writes. No alignment beyond that of a word is needed.
pub(super) trait Isa: Copy {
    /// A vector of f32, or of words seen as such.
    type V: Copy;
    /// f32 lanes of a vector; divides 16.
    const LANES: usize;
    /// Elements of an operand in one word.
    const PAIR: usize;
    /// Vectors beside one another in a register tile.
    const TILE_VECTORS: usize;
    /// What [`exp2`] takes for all smaller arguments; its result there is 0.
    const SMALLEST_EXPONENT: f32;

    /// Runs `task` compiled for this instruction set.
    unsafe fn enter<T: Task>(task: T);
    /// `x` in all lanes.
    unsafe fn splat(x: f32) -> Self::V;
    /// One word in all lanes.
    unsafe fn splat_word(word: *const u32) -> Self::V;
    /// Reads `LANES` f32.
    unsafe fn load(from: *const f32) -> Self::V;
    /// Writes `LANES` f32.
    unsafe fn store(to: *mut f32, x: Self::V);
    /// `a + b`
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the processor can.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The greater; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The nearest integer, ties to even; for magnitudes below 2^22.
    unsafe fn round(x: Self::V) -> Self::V;
    /// `x * 2^exponent` for an integer `exponent` of at least [`Isa::SMALLEST_EXPONENT`].
    unsafe fn scale_by_power(x: Self::V, exponent: Self::V) -> Self::V;
    /// `sum + a . b`, where each lane of `a` and `b` is a word of `PAIR` elements.
    unsafe fn product(sum: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Rounds `x` to elements and writes them one after another (`LANES / PAIR` words): part of a row
    /// of a left operand.
    unsafe fn store_along(to: *mut u32, x: Self::V);
    /// Rounds two neighbors along the summed dimension and writes them as a right operand: as one
    /// row of words holding both, or as two rows `stride` words apart.
    unsafe fn store_across(to: *mut u32, stride: usize, even: Self::V, odd: Self::V);
    /// Transposes `LANES` rows of 8 words, `from_stride` apart, into 8 rows of `LANES` words,
    /// `to_stride` apart.
    unsafe fn transpose(from: *const u32, from_stride: usize, to: *mut u32, to_stride: usize);
    /// Asks for the cache line of `address`, which need not be valid, ahead of its use.
    unsafe fn prefetch(address: *const u8);
}

/// Coefficients of `f, f^2, ...` of the polynomial that has the least greatest relative error from
/// `2^f` on [-1/2, 1/2] among those of degree 6 with constant term 1: 2.0e-9 before rounding.
pub(super) const EXP2_COEFFICIENTS: [f32; 6] = [
    std::f32::consts::LN_2,
    0.240_226_48,
    0.055_503_324,
    0.009_618_437,
    0.001_339_887_5,
    0.000_153_533_62,
];

/// `2^x`, within 1.5 units in the last place for results that are normal numbers.
///
/// Exactly 1 at 0, exactly 0 below [`Isa::SMALLEST_EXPONENT`] (at -infinity too), NaN at NaN. Results
/// below 2^-126 may be 0. `x` must be below 128.
///
/// # Safety
/// As for [`Isa`].
#[inline(always)]
pub(super) unsafe fn exp2<I: Isa>(x: I::V) -> I::V {
    // In this order, because `max` returns its second argument for a NaN.
    let x = I::max(I::splat(I::SMALLEST_EXPONENT), x);
    let exponent = I::round(x);
    let fraction = I::sub(x, exponent);
    let mut sum = I::splat(EXP2_COEFFICIENTS[5]);
    for coefficient in EXP2_COEFFICIENTS[..5].iter().rev() {
        sum = I::mul_add(sum, fraction, I::splat(*coefficient));
    }
    I::scale_by_power(I::mul_add(sum, fraction, I::splat(1.0)), exponent)
}
