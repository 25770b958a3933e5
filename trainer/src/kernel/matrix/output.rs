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
        rounds: bool,
    },
}

impl<'a> Target<'a> {
    pub(super) fn new(output: Output<'a>) -> Self {
        match output {
            Output::Rounded { to, base, bias, finish } => {
                Self::Rounded { to: DisjointMut::new(to), base, bias, finish }
            }
            Output::Wide { to, add, rounds } => {
                Self::Wide { to: DisjointMut::new(to), add, rounds }
            }
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
    ///
    /// Loops over sums do nothing but go over them: so they are unrolled, and sums stay in registers.
    #[inline(always)]
    pub(super) unsafe fn put<const M: usize, const N: usize>(
        &self,
        mut sums: Sums<M, N>,
        (row, panel): (usize, usize),
        num_columns: usize,
    ) {
        let first = panel * PANEL;
        let width = (N * LANES).min(num_columns - first);
        let place = Place {
            start: row * num_columns + first,
            stride: num_columns,
            last: mask(width - (N - 1) * LANES),
        };
        let len = (M - 1) * num_columns + width;
        match self {
            Self::Rounded { to, base, bias, .. } => {
                if let Some(base) = base {
                    let from = base[place.start..place.start + len].as_ptr();
                    place.add_widened(&mut sums, from, num_columns);
                }
                if let Some(bias) = bias {
                    place.add_widened(&mut sums, bias[first..first + width].as_ptr(), 0);
                }
                place.put_rounded(&sums, to.pointer(place.start, len));
            }
            Self::Wide { to, add, rounds } => {
                let to = to.pointer(place.start, len);
                if *rounds {
                    round(&mut sums);
                }
                if *add {
                    place.add(&mut sums, to);
                }
                place.put_wide(&sums, to);
            }
        }
    }
}

/// Where the sums of a tile go: `[M, N * LANES]` elements, but for the last vector of each row.
#[derive(Clone, Copy)]
struct Place {
    /// The first of them.
    start: usize,
    /// Elements from one row to the next.
    stride: usize,
    /// Lanes of the last vector that there are.
    last: __mmask16,
}

impl Place {
    /// Lanes of vector `n` of `N`.
    #[inline(always)]
    fn lanes<const N: usize>(self, n: usize) -> __mmask16 {
        if n + 1 == N { self.last } else { __mmask16::MAX }
    }

    /// Adds what is in bf16 at `from`, with rows `stride` apart.
    #[inline(always)]
    unsafe fn add_widened<const M: usize, const N: usize>(
        self,
        sums: &mut Sums<M, N>,
        from: *const bf16,
        stride: usize,
    ) {
        for (m, sums) in sums.iter_mut().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                let from = from.add(m * stride + n * LANES);
                *sum = _mm512_add_ps(*sum, widened(from, self.lanes::<N>(n)));
            }
        }
    }

    /// Adds what is at `from`.
    #[inline(always)]
    unsafe fn add<const M: usize, const N: usize>(self, sums: &mut Sums<M, N>, from: *const f32) {
        for (m, sums) in sums.iter_mut().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                let from = from.add(m * self.stride + n * LANES);
                *sum = _mm512_add_ps(_mm512_maskz_loadu_ps(self.lanes::<N>(n), from), *sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn put_rounded<const M: usize, const N: usize>(self, sums: &Sums<M, N>, to: *mut bf16) {
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                let rounded = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(*sum));
                let to = to.add(m * self.stride + n * LANES);
                _mm256_mask_storeu_epi16(to.cast(), self.lanes::<N>(n), rounded);
            }
        }
    }

    #[inline(always)]
    unsafe fn put_wide<const M: usize, const N: usize>(self, sums: &Sums<M, N>, to: *mut f32) {
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                let to = to.add(m * self.stride + n * LANES);
                _mm512_mask_storeu_ps(to, self.lanes::<N>(n), *sum);
            }
        }
    }
}

/// Rounds sums to bf16.
#[inline(always)]
unsafe fn round<const M: usize, const N: usize>(sums: &mut Sums<M, N>) {
    for sums in sums {
        for sum in sums {
            let bits = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(*sum));
            *sum = wide(bits);
        }
    }
}

/// Elements in f32.
#[inline(always)]
unsafe fn widened(elements: *const bf16, lanes: __mmask16) -> __m512 {
    wide(_mm256_maskz_loadu_epi16(lanes, elements.cast()))
}

/// The bits of bf16 as f32.
#[inline(always)]
unsafe fn wide(bits: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}
