//! Four lanes in plain Rust, for processors without one of the other instruction sets.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has the one contract stated at the trait Isa"
)]
#![allow(unsafe_code, reason = "raw loads and stores")]

use super::{Isa, Task};
use std::array::from_fn;

/// Adding and subtracting it rounds an f32 of magnitude below 2^22 to an integer.
const ROUNDER: f32 = 12_582_912.0; // 1.5 * 2^23

/// Arrays that the compiler may turn into whatever vectors the target has.
#[derive(Clone, Copy)]
pub(in super::super) struct Portable;

impl Isa for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const PAIR: usize = 1;
    const TILE_VECTORS: usize = 2;
    const SMALLEST_EXPONENT: f32 = -127.0;

    #[inline(always)]
    unsafe fn enter<T: Task>(task: T) {
        task.run::<Self>();
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn splat_word(word: *const u32) -> Self::V {
        [f32::from_bits(*word); 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        *from.cast::<[f32; 4]>()
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::V) {
        *to.cast::<[f32; 4]>() = x;
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        from_fn(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        from_fn(|lane| a[lane] - b[lane])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        from_fn(|lane| a[lane] * b[lane])
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not f32::mul_add, which is a call into the C library where there is no instruction.
        from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        from_fn(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    unsafe fn round(x: Self::V) -> Self::V {
        from_fn(|lane| (x[lane] + ROUNDER) - ROUNDER)
    }
    #[inline(always)]
    unsafe fn scale_by_power(x: Self::V, exponent: Self::V) -> Self::V {
        // An exponent of -127 becomes the bits of 0.
        from_fn(|lane| x[lane] * f32::from_bits(((exponent[lane] as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn product(sum: Self::V, a: Self::V, b: Self::V) -> Self::V {
        Self::mul_add(a, b, sum)
    }
    #[inline(always)]
    unsafe fn store_along(to: *mut u32, x: Self::V) {
        Self::store(to.cast(), x);
    }
    #[inline(always)]
    unsafe fn store_across(to: *mut u32, stride: usize, even: Self::V, odd: Self::V) {
        Self::store(to.cast(), even);
        Self::store(to.add(stride).cast(), odd);
    }
    #[inline(always)]
    unsafe fn transpose(from: *const u32, from_stride: usize, to: *mut u32, to_stride: usize) {
        for word in 0..8 {
            for row in 0..4 {
                *to.add(word * to_stride + row) = *from.add(row * from_stride + word);
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}
}
