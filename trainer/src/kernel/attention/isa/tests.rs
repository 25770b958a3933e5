//! The exponential's error bound and the transposes, at every level of this machine.

use super::portable::Portable;
use super::{Isa, Task, exp2};
use crate::kernel::attention::Level;

/// As stated at [`exp2`]; in units of the last place of the exact result.
const EXP2_ERROR_ULP: f64 = 1.5;

struct Exponentials<'a>(&'a mut Vec<f32>);

impl Task for Exponentials<'_> {
    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        for chunk in self.0.chunks_exact_mut(I::LANES) {
            // SAFETY: the caller of `run` vouches for the features; a chunk holds LANES floats.
            unsafe { I::store(chunk.as_mut_ptr(), exp2::<I>(I::load(chunk.as_ptr()))) };
        }
    }
}

struct Transpose<'a> {
    from: &'a [u32],
    to: &'a mut [u32],
}

impl Task for Transpose<'_> {
    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: 16 rows of 11 words and 8 rows of 19 words hold what is read and written.
        unsafe { I::transpose(self.from.as_ptr(), 11, self.to.as_mut_ptr(), 19) };
        let transposed = |row: usize, word: usize| self.to[word * 19 + row];
        for (row, word) in (0..I::LANES).flat_map(|row| (0..8).map(move |word| (row, word))) {
            assert_eq!(transposed(row, word), self.from[row * 11 + word]);
        }
    }
}

fn on_each_level(mut run: impl FnMut(Level)) {
    Level::ALL.into_iter().filter(|level| level.is_available()).for_each(&mut run);
}

fn enter<T: Task>(level: Level, task: T) {
    #[cfg(target_arch = "x86_64")]
    use super::{avx2::Avx2, avx512::Avx512};
    // SAFETY: `on_each_level` passes levels that this processor has.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => Avx512::<2>::enter(task),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Avx512::<1>::enter(task),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Avx2::enter(task),
            _ => Portable::enter(task),
        }
    }
}

#[test]
fn exp2_keeps_its_bound() {
    on_each_level(|level| {
        let arguments: Vec<f32> =
            (0..1_600_000).map(|at| -125.99 + 253.0 * (at as f32 / 1.6e6)).collect();
        let mut results = arguments.clone();
        enter(level, Exponentials(&mut results));
        for (&x, &y) in arguments.iter().zip(&results) {
            let exact = f64::from(x).exp2();
            let ulp = exact.log2().floor().exp2() * f64::from(f32::EPSILON);
            let error = (f64::from(y) - exact).abs() / ulp;
            assert!(error <= EXP2_ERROR_ULP, "{level:?}: 2^{x} = {y}, off by {error} ulp");
        }
    });
}

#[test]
fn exp2_at_the_special_points() {
    on_each_level(|level| {
        let mut values = vec![0.0, -0.0, 1.0, -1.0, f32::NEG_INFINITY, -1.0e30, -151.0, f32::NAN];
        values.extend([-3.0; 8]);
        enter(level, Exponentials(&mut values));
        assert_eq!(values[..7], [1.0, 1.0, 2.0, 0.5, 0.0, 0.0, 0.0], "{level:?}");
        assert!(values[7].is_nan(), "{level:?}");
        assert_eq!(values[8..], [0.125; 8], "{level:?}");
    });
}

#[test]
fn transposes_move_every_word() {
    on_each_level(|level| {
        let from: Vec<u32> = (0..16 * 11).collect();
        let mut to = vec![0; 8 * 19];
        enter(level, Transpose { from: &from, to: &mut to });
    });
}
