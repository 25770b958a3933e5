//! Products of bf16 matrices with sums in f32, on processors with AVX-512 BF16.
//!
//! libtorch's library reaches 84 % of what such a core can multiply and add where operands lie as
//! it likes them, and 73 % for a weight's gradient. Here each element of the result is one chain
//! over the summed dimension, two elements at a time: no bit depends on the number of threads, on
//! how the work is cut, nor on the other rows and columns.
//!
//! What each file does: `pack` brings operands into the layouts that `tile` multiplies, `output`
//! rounds and stores, `schedule` shares the work out. `M` rows, `N` columns, `K` summed.
#![allow(unsafe_code, reason = "enters code compiled for instructions that were detected")]

#[cfg(target_arch = "x86_64")]
mod output;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod schedule;
#[cfg(target_arch = "x86_64")]
mod tile;
mod words;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use std::fmt::Debug;

use half::bf16;

use self::words::Words;
use super::pool::Pool;

/// A bf16 matrix as a factor of a product.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// Row-major elements: `[rows, columns]`, or `[columns, rows]` if transposed.
    pub elements: &'a [bf16],
    /// Rows of the factor.
    pub rows: usize,
    /// Columns of the factor.
    pub columns: usize,
    /// Whether the elements are those of the transpose.
    pub transposed: bool,
}

/// Work on finished rows of a product, a row at a time.
pub trait Finish: Debug + Sync {
    /// Changes `rows`, whole rows `[.., N]` from row `first_row` of the product on.
    fn finish(&self, first_row: usize, rows: &mut [bf16]);
}

/// What becomes of a product `[M, N]`.
#[derive(Debug)]
pub enum Output<'a> {
    /// Rounded once to bf16, after `base` and `bias` are added in f32.
    Rounded {
        /// `[M, N]`, overwritten.
        to: &'a mut [bf16],
        /// `[M, N]`, what the product is added to.
        base: Option<&'a [bf16]>,
        /// `[N]`, added to each row.
        bias: Option<&'a [bf16]>,
        /// What is done to whole rows, while they are still in a cache.
        finish: Option<&'a dyn Finish>,
    },
    /// Kept in f32.
    Wide {
        /// `[M, N]`.
        to: &'a mut [f32],
        /// Whether the product is added to `to`, or replaces it.
        add: bool,
        /// Whether the product is rounded to bf16 before.
        rounds: bool,
    },
}

impl Output<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Rounded { to, .. } => to.len(),
            Self::Wide { to, .. } => to.len(),
        }
    }
}

/// The memory and threads of products. Kept from call to call, it stops allocating.
#[derive(Debug)]
pub struct Multiplier {
    pool: Pool,
    /// A right operand in panels, for all threads.
    shared: Words,
    /// Of each thread.
    scratch: Vec<Words>,
}

impl Multiplier {
    /// Products on the threads of `pool`; `None` where the processor has no AVX-512 BF16, and where
    /// it has matrix tiles (AMX), which libtorch uses and which are faster by far.
    #[must_use]
    pub fn detect(pool: Pool) -> Option<Self> {
        let scratch = (0..pool.num_threads()).map(|_| Words::default()).collect();
        is_for_this_processor().then(|| Self { pool, shared: Words::default(), scratch })
    }

    /// `output = left right`.
    ///
    /// # Panics
    /// If shapes do not fit each other.
    pub fn multiply(&mut self, left: Operand<'_>, right: Operand<'_>, output: Output<'_>) {
        assert_eq!(left.columns, right.rows, "the summed dims agree");
        assert_eq!(left.elements.len(), left.rows * left.columns, "left is as its shape says");
        assert_eq!(right.elements.len(), right.rows * right.columns, "right is as its shape says");
        assert_eq!(output.len(), left.rows * right.columns, "the output is [M, N]");
        if let Output::Rounded { base, bias, .. } = &output {
            assert!(base.is_none_or(|base| base.len() == output.len()), "the base is [M, N]");
            assert!(bias.is_none_or(|bias| bias.len() == right.columns), "the bias is [N]");
        }
        if output.len() == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        schedule::multiply(self, left, right, output);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("no multiplier is made on this architecture");
    }
}

#[cfg(target_arch = "x86_64")]
fn is_for_this_processor() -> bool {
    /// CPUID leaf 7, EDX: tile products of bf16.
    const AMX_BF16: u32 = 1 << 22;
    let has_bf16 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bf16");
    has_bf16 && std::arch::x86_64::__cpuid_count(7, 0).edx & AMX_BF16 == 0
}

#[cfg(not(target_arch = "x86_64"))]
fn is_for_this_processor() -> bool {
    false
}
