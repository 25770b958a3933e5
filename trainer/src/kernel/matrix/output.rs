//! Rounds and stores the sums of tiles.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: AVX-512 BF16, and tiles that no other thread has"
)]
#![allow(unsafe_code, reason = "vector intrinsics, disjoint tiles of the output")]

use std::arch::x86_64::*;
use std::mem::transmute;
use std::ops::Range;

use half::bf16;

use super::pack::{mask, touch};
use super::tile::{LANES, PANEL, Sums};
use super::{Finish, Output};
use crate::kernel::pool::DisjointMut;

/// [`Output`], shared among threads.
pub(super) enum Target<'a> {
    Rounded {
        to: DisjointMut<'a, bf16>,
        base: Option<&'a [bf16]>,
        bias: Option<&'a [bf16]>,
        finish: Option<&'a dyn Finish>,
    },
    Wide {
        to: DisjointMut<'a, f32>,
        add: bool,
    },
}

impl<'a> Target<'a> {
    pub(super) fn new(output: Output<'a>) -> Self {
        match output {
            Output::Rounded { to, base, bias, finish } => {
                Self::Rounded { to: DisjointMut::new(to), base, bias, finish }
            }
            Output::Wide { to, add } => Self::Wide { to: DisjointMut::new(to), add },
        }
    }

    /// Whether rows want to be finished.
    pub(super) fn has_finish(&self) -> bool {
        matches!(self, Self::Rounded { finish: Some(_), .. })
    }

    /// Finishes `rows`, which are stored, where that is wanted.
    ///
    /// # Safety
    /// No other thread has these rows.
    pub(super) unsafe fn finish(&self, rows: Range<usize>, num_columns: usize) {
        let Self::Rounded { to, finish: Some(finish), .. } = self else { return };
        finish.finish(rows.start, to.slice(rows.start * num_columns, rows.len() * num_columns));
    }

    /// Asks for what [`Target::put`] will read and write, ahead of the product: these short rows lie
    /// so far apart that the processor does not guess the next one.
    #[inline(always)]
    pub(super) unsafe fn prefetch(&self, rows: Range<usize>, panel: usize, num_columns: usize) {
        let first = panel * PANEL;
        let width = PANEL.min(num_columns - first);
        for row in rows {
            let start = row * num_columns + first;
            match self {
                Self::Rounded { to, base, .. } => {
                    touch(to.slice(start, width));
                    if let Some(base) = base {
                        touch(&base[start..start + width]);
                    }
                }
                Self::Wide { to, .. } => touch(to.slice(start, width)),
            }
        }
    }

    /// Stores sums at rows from `row` on and panel `panel` of `num_columns` columns.
    #[inline(always)]
    pub(super) unsafe fn put<const M: usize, const N: usize>(
        &self,
        sums: Sums<M, N>,
        (row, panel): (usize, usize),
        num_columns: usize,
    ) {
        let first = panel * PANEL;
        let width = (N * LANES).min(num_columns - first);
        for (m, sums) in sums.iter().enumerate() {
            let start = (row + m) * num_columns + first;
            match self {
                Self::Rounded { to, base, bias, .. } => {
                    let to = to.slice(start, width);
                    let base = base.map(|base| &base[start..start + width]);
                    let bias = bias.map(|bias| &bias[first..first + width]);
                    put_rounded(*sums, to, base, bias);
                }
                Self::Wide { to, add } => put_wide(*sums, to.slice(start, width), *add),
            }
        }
    }
}

/// A row of sums, of which `to` takes as many as it has elements.
#[inline(always)]
unsafe fn put_rounded<const N: usize>(
    sums: [__m512; N],
    to: &mut [bf16],
    base: Option<&[bf16]>,
    bias: Option<&[bf16]>,
) {
    for (n, mut sum) in sums.into_iter().enumerate() {
        let (lane, lanes) = (n * LANES, mask(to.len() - n * LANES));
        if let Some(base) = base {
            sum = _mm512_add_ps(sum, widened(base.as_ptr().add(lane), lanes));
        }
        if let Some(bias) = bias {
            sum = _mm512_add_ps(sum, widened(bias.as_ptr().add(lane), lanes));
        }
        let rounded = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sum));
        _mm256_mask_storeu_epi16(to.as_mut_ptr().add(lane).cast(), lanes, rounded);
    }
}

/// The same in f32.
#[inline(always)]
unsafe fn put_wide<const N: usize>(sums: [__m512; N], to: &mut [f32], add: bool) {
    for (n, mut sum) in sums.into_iter().enumerate() {
        let (lanes, to) = (mask(to.len() - n * LANES), to.as_mut_ptr().add(n * LANES));
        if add {
            sum = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, to), sum);
        }
        _mm512_mask_storeu_ps(to, lanes, sum);
    }
}

/// Elements in f32.
#[inline(always)]
unsafe fn widened(elements: *const bf16, lanes: __mmask16) -> __m512 {
    let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, elements.cast()));
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
}
