//! Sixteen lanes with AVX-512; with `PAIR` = 2 the products are those of AVX-512 BF16.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has the one contract stated at the trait Isa"
)]
#![allow(unsafe_code, reason = "vector intrinsics, raw loads and stores")]

use super::{Isa, Task};
use std::arch::x86_64::*;
use std::mem::transmute;

/// Needs `avx512f`, `avx512bw`, `avx512vl` and `avx512dq`, and for `PAIR` = 2 `avx512bf16`.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512<const PAIR: usize>;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn run_with_bf16<T: Task>(task: T) {
    task.run::<Avx512<2>>();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn run_with_f32<T: Task>(task: T) {
    task.run::<Avx512<1>>();
}

impl<const PAIR: usize> Isa for Avx512<PAIR> {
    type V = __m512;
    const LANES: usize = 16;
    const PAIR: usize = PAIR;
    const TILE_VECTORS: usize = 4;
    const SMALLEST_EXPONENT: f32 = -151.0;

    #[inline(always)]
    unsafe fn enter<T: Task>(task: T) {
        if PAIR == 2 { run_with_bf16(task) } else { run_with_f32(task) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn splat_word(word: *const u32) -> __m512 {
        _mm512_set1_ps(*word.cast())
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        _mm512_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m512) {
        _mm512_storeu_ps(to, x);
    }
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512 {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
    }
    #[inline(always)]
    unsafe fn scale_by_power(x: __m512, exponent: __m512) -> __m512 {
        _mm512_scalef_ps(x, exponent)
    }
    #[inline(always)]
    unsafe fn product(sum: __m512, a: __m512, b: __m512) -> __m512 {
        if PAIR == 2 {
            _mm512_dpbf16_ps(
                sum,
                transmute::<__m512, __m512bh>(a),
                transmute::<__m512, __m512bh>(b),
            )
        } else {
            _mm512_fmadd_ps(a, b, sum)
        }
    }
    #[inline(always)]
    unsafe fn store_along(to: *mut u32, x: __m512) {
        if PAIR == 2 {
            _mm256_storeu_si256(to.cast(), transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)));
        } else {
            _mm512_storeu_ps(to.cast(), x);
        }
    }
    #[inline(always)]
    unsafe fn store_across(to: *mut u32, stride: usize, even: __m512, odd: __m512) {
        if PAIR == 2 {
            let even = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(even));
            let odd = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(odd));
            let odd = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(odd));
            let words = _mm512_or_si512(_mm512_cvtepu16_epi32(even), odd);
            _mm512_storeu_si512(to.cast(), words);
        } else {
            _mm512_storeu_ps(to.cast(), even);
            _mm512_storeu_ps(to.add(stride).cast(), odd);
        }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const u32, from_stride: usize, to: *mut u32, to_stride: usize) {
        // Row r in the lower 256 bits, row r + 8 in the upper: two 8 x 8 transposes at once.
        let mut rows = [_mm512_setzero_ps(); 8];
        for (row, vector) in rows.iter_mut().enumerate() {
            let low = _mm256_loadu_ps(from.add(row * from_stride).cast());
            let high = _mm256_loadu_ps(from.add((row + 8) * from_stride).cast());
            *vector = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high);
        }
        // Words of rows 0..4 and of rows 4..8 (and of those 8 below), four rows to 128 bits.
        let mut quads = [[_mm512_setzero_pd(); 4]; 2];
        for (quad, four) in quads.iter_mut().zip(rows.as_chunks::<4>().0) {
            let low = _mm512_castps_pd(_mm512_unpacklo_ps(four[0], four[1]));
            let high = _mm512_castps_pd(_mm512_unpackhi_ps(four[0], four[1]));
            let next_low = _mm512_castps_pd(_mm512_unpacklo_ps(four[2], four[3]));
            let next_high = _mm512_castps_pd(_mm512_unpackhi_ps(four[2], four[3]));
            quad[0] = _mm512_unpacklo_pd(low, next_low);
            quad[1] = _mm512_unpackhi_pd(low, next_low);
            quad[2] = _mm512_unpacklo_pd(high, next_high);
            quad[3] = _mm512_unpackhi_pd(high, next_high);
        }
        let low_halves = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
        let high_halves = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
        for (word, (&first, &second)) in quads[0].iter().zip(&quads[1]).enumerate() {
            let low = _mm512_permutex2var_pd(first, low_halves, second);
            let high = _mm512_permutex2var_pd(first, high_halves, second);
            _mm512_storeu_pd(to.add(word * to_stride).cast(), low);
            _mm512_storeu_pd(to.add((word + 4) * to_stride).cast(), high);
        }
    }
}
