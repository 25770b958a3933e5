//! Picks the widest vector instructions of the machine at run time, for bodies written once.
//!
//! A body is plain Rust that inlines into one wrapper per level, where the compiler vectorizes it
//! with that level's instructions. A body adds in an order that it writes out itself, and Rust never
//! contracts a product and a sum to one rounding, so all levels give the same bits.
#![allow(unsafe_code, reason = "calls functions compiled for instructions that were detected")]

/// A set of vector instructions that this machine has: a value of this type proves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level(Instructions);

/// The instructions that bodies are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instructions {
    /// What every machine of the target architecture has.
    Portable,
    /// AVX2 with FMA, 256 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL, 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A piece of work that runs at a [`Level`]: one block of rows of a kernel.
pub(super) trait Body {
    /// What the body returns.
    type Output;

    /// Does the work; `level` is for parts that are bodies of their own. Implementations and all
    /// that they call must be `#[inline(always)]`, or they are compiled for any machine. Loops are
    /// `for` loops: a closure given to an iterator may end up in a function that is not inlined.
    fn run(self, level: Level) -> Self::Output;
}

impl Level {
    /// The widest level of this machine.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx512() {
                return Self(Instructions::Avx512);
            }
            if has_avx2() {
                return Self(Instructions::Avx2);
            }
        }
        Self(Instructions::Portable)
    }

    /// All levels of this machine.
    #[cfg(test)]
    pub(super) fn available() -> Vec<Self> {
        let mut levels = vec![Self(Instructions::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(has_avx2().then_some(Self(Instructions::Avx2)));
            levels.extend(has_avx512().then_some(Self(Instructions::Avx512)));
        }
        levels
    }

    /// Runs `body` with the instructions of this level.
    #[inline(always)]
    pub(super) fn run<B: Body>(self, body: B) -> B::Output {
        match self.0 {
            Instructions::Portable => run_portable(body, self),
            // SAFETY: the level was made by a function above, which has seen the features.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => unsafe { run_avx2(body, self) },
            // SAFETY: the level was made by a function above, which has seen the features.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => unsafe { run_avx512(body, self) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

// None of these is inlined: a body vectorizes the same wherever it is called from.

#[inline(never)]
fn run_portable<B: Body>(body: B, level: Level) -> B::Output {
    body.run(level)
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<B: Body>(body: B, level: Level) -> B::Output {
    body.run(level)
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn run_avx512<B: Body>(body: B, level: Level) -> B::Output {
    body.run(level)
}
