//! The two element types that attention's tensors may have.

use half::bf16;

/// bf16 or f32. Sealed: the kernel knows no other.
pub trait Element: sealed::Conversion {}

impl Element for f32 {}
impl Element for bf16 {}

pub(super) mod sealed {
    /// How elements become operands of products, and results become elements.
    pub trait Conversion: Copy + Send + Sync + 'static {
        /// Whether two elements may share a word of an operand.
        const IS_BF16: bool;

        /// Its value, exactly.
        fn widen(self) -> f32;

        /// The nearest element, ties to even.
        fn narrow(value: f32) -> Self;

        /// Writes `row` as operand words of `pair` elements each, the earlier one in the lower bits;
        /// words past the row become 0. `pair` is 2 for bf16 alone.
        fn write_words(row: &[Self], pair: usize, words: &mut [u32]);
    }
}

impl sealed::Conversion for f32 {
    const IS_BF16: bool = false;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn write_words(row: &[Self], _pair: usize, words: &mut [u32]) {
        let (front, rest) = words.split_at_mut(row.len());
        front.iter_mut().zip(row).for_each(|(word, value)| *word = value.to_bits());
        rest.fill(0);
    }
}

impl sealed::Conversion for bf16 {
    const IS_BF16: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        // The same as half's conversion, but without a branch, so that loops over it become vectors.
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        Self::from_bits(if value.is_nan() { quiet_nan as u16 } else { rounded as u16 })
    }

    #[inline(always)]
    fn write_words(row: &[Self], pair: usize, words: &mut [u32]) {
        if pair == 1 {
            let (front, rest) = words.split_at_mut(row.len());
            front.iter_mut().zip(row).for_each(|(word, value)| *word = value.widen().to_bits());
            rest.fill(0);
            return;
        }
        let (pairs, odd) = row.as_chunks::<2>();
        let (front, rest) = words.split_at_mut(pairs.len());
        for (word, [low, high]) in front.iter_mut().zip(pairs) {
            *word = u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
        }
        rest.fill(0);
        if let [last] = odd {
            rest[0] = u32::from(last.to_bits());
        }
    }
}
