//! Runs a loop compiled for the widest vector unit that this processor has.
#![allow(
    unsafe_code,
    reason = "a function with target features may only be called once they were detected"
)]

/// A loop that is compiled once a [`SimdLevel`].
pub(crate) trait Kernel {
    /// What the loop returns.
    type Output;
    /// The loop. Implementations are `#[inline(always)]`, so that each wrapper below compiles its
    /// own copy with its own vector width.
    fn run(self) -> Self::Output;
}

/// Vector widths that loops are compiled for; results have the same bits at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SimdLevel {
    /// What the target guarantees (SSE2 on x86-64).
    Portable,
    /// 256 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512 bits: F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl SimdLevel {
    /// Whether this processor has the level (the standard library remembers what it detected).
    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
        }
    }

    /// All levels, narrowest first.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const ALL: &[Self] = &[Self::Portable, Self::Avx2, Self::Avx512];
    /// All levels, narrowest first.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) const ALL: &[Self] = &[Self::Portable];

    /// The widest level of this processor.
    pub(crate) fn detect() -> Self {
        let widest = Self::ALL.iter().rev().find(|level| level.is_available());
        *widest.expect("Portable is always available")
    }

    /// Runs `kernel` at this level, or at [`SimdLevel::Portable`] if the processor lacks it.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 if self.is_available() => {
                // SAFETY: the guard of this arm detected every feature that `run_avx512` enables.
                unsafe { run_avx512(kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 if self.is_available() => {
                // SAFETY: the guard of this arm detected the feature that `run_avx2` enables.
                unsafe { run_avx2(kernel) }
            }
            _ => kernel.run(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
