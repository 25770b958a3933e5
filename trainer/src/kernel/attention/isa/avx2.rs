//! Eight lanes with AVX2 and FMA.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has the one contract stated at the trait Isa"
)]
#![allow(unsafe_code, reason = "vector intrinsics, raw loads and stores")]

use super::{Isa, Task};
use std::arch::x86_64::*;

/// Needs `avx2` and `fma`.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2;

#[target_feature(enable = "avx2,fma")]
unsafe fn run_with_features<T: Task>(task: T) {
    task.run::<Avx2>();
}

impl Isa for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const PAIR: usize = 1;
    const TILE_VECTORS: usize = 2;
    const SMALLEST_EXPONENT: f32 = -127.0;

    #[inline(always)]
    unsafe fn enter<T: Task>(task: T) {
        run_with_features(task);
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn splat_word(word: *const u32) -> __m256 {
        _mm256_set1_ps(*word.cast())
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        _mm256_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m256) {
        _mm256_storeu_ps(to, x);
    }
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        _mm256_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn round(x: __m256) -> __m256 {
        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
    }
    #[inline(always)]
    unsafe fn scale_by_power(x: __m256, exponent: __m256) -> __m256 {
        // An exponent of -127 becomes the bits of 0.
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127));
        _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
    }
    #[inline(always)]
    unsafe fn product(sum: __m256, a: __m256, b: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, sum)
    }
    #[inline(always)]
    unsafe fn store_along(to: *mut u32, x: __m256) {
        _mm256_storeu_ps(to.cast(), x);
    }
    #[inline(always)]
    unsafe fn store_across(to: *mut u32, stride: usize, even: __m256, odd: __m256) {
        _mm256_storeu_ps(to.cast(), even);
        _mm256_storeu_ps(to.add(stride).cast(), odd);
    }
    #[inline(always)]
    unsafe fn transpose(from: *const u32, from_stride: usize, to: *mut u32, to_stride: usize) {
        let mut rows = [_mm256_setzero_ps(); 8];
        for (row, vector) in rows.iter_mut().enumerate() {
            *vector = _mm256_loadu_ps(from.add(row * from_stride).cast());
        }
        // Words of rows 0..4 and of rows 4..8, four rows to a 128-bit half.
        let mut quads = [[_mm256_setzero_ps(); 4]; 2];
        for (quad, four) in quads.iter_mut().zip(rows.as_chunks::<4>().0) {
            let low = _mm256_castps_pd(_mm256_unpacklo_ps(four[0], four[1]));
            let high = _mm256_castps_pd(_mm256_unpackhi_ps(four[0], four[1]));
            let next_low = _mm256_castps_pd(_mm256_unpacklo_ps(four[2], four[3]));
            let next_high = _mm256_castps_pd(_mm256_unpackhi_ps(four[2], four[3]));
            quad[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, next_low));
            quad[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, next_low));
            quad[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high, next_high));
            quad[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high, next_high));
        }
        for (word, (&first, &second)) in quads[0].iter().zip(&quads[1]).enumerate() {
            let low = _mm256_permute2f128_ps::<0x20>(first, second);
            let high = _mm256_permute2f128_ps::<0x31>(first, second);
            _mm256_storeu_ps(to.add(word * to_stride).cast(), low);
            _mm256_storeu_ps(to.add((word + 4) * to_stride).cast(), high);
        }
    }
}
