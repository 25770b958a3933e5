//! The element types that kernels read and write: bf16 for training, f32 for tests and statistics.
//!
//! A kernel widens each element to f32, computes in f32 and rounds each result once.

use half::bf16;

#[cfg(test)]
mod tests;

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::bf16 {}
    impl Sealed for f32 {}
}

/// A type that tensors of the kernels may have. Sealed: bf16 and f32.
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + 'static {
    /// The value in f32, exactly.
    fn to_f32(self) -> f32;

    /// `value` rounded to the nearest element, ties to even; a NaN stays a NaN.
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

/// Not by the methods of `half`: these are free of branches, so that loops over them vectorize.
impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        // Adding just under half of the last kept place, plus the kept part's lowest bit, carries
        // into the kept part exactly when round-to-nearest-even rounds up.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // The carry could turn a NaN into an infinity or a zero, so a NaN keeps its upper part and
        // gets the quiet bit.
        let quiet = (bits >> 16) | 0x40;
        let kept = if value.is_nan() { quiet } else { rounded };
        bf16::from_bits((kept & 0xffff) as u16)
    }
}

/// Writes `from` to `to` in f32.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub(super) fn widen<E: Element>(from: &[E], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "as many elements are read as written");
    for (wide, element) in to.iter_mut().zip(from) {
        *wide = element.to_f32();
    }
}

/// Rounds `from` into `to`.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub(super) fn narrow<E: Element>(from: &[f32], to: &mut [E]) {
    assert_eq!(from.len(), to.len(), "as many elements are read as written");
    for (element, wide) in to.iter_mut().zip(from) {
        *element = E::from_f32(*wide);
    }
}
