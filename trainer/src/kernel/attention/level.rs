//! Which vector instructions to use, chosen when the program runs.

/// An instruction set for the attention kernel, from the most common to the fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, any processor.
    Portable,
    /// AVX2 with FMA, products in f32.
    Avx2,
    /// AVX-512 (F, BW, VL, DQ), products in f32.
    Avx512,
    /// AVX-512 with BF16: products of bf16 elements, sums in f32. For f32 elements as [`Level::Avx512`].
    Avx512Bf16,
}

impl Level {
    /// All levels, the slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The fastest level that this processor has.
    #[must_use]
    pub fn detect() -> Self {
        let available = Self::ALL.into_iter().rev().find(|level| level.is_available());
        available.unwrap_or(Self::Portable)
    }

    /// Whether this processor can run it.
    #[must_use]
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = || {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            };
            match self {
                Self::Portable => true,
                Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
                Self::Avx512 => avx512(),
                Self::Avx512Bf16 => avx512() && is_x86_feature_detected!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }
}
