//! Sums and maxima over a row in f32, in one order that all vector widths share.
//!
//! Each is a body of its own, called once a row: inlined into a long body, the compiler gives up on
//! keeping the lanes in vector registers.

use super::dispatch::{Body, Level};

#[cfg(test)]
mod tests;

/// How many running results a row is dealt out to.
const LANES: usize = 32;

/// The sum of `values`.
#[inline(always)]
pub(super) fn sum(level: Level, values: &[f32]) -> f32 {
    level.run(Sum { values })
}

/// The largest of `values`, minus infinity if there are none. Passes over a NaN.
#[inline(always)]
pub(super) fn max(level: Level, values: &[f32]) -> f32 {
    level.run(Max { values })
}

struct Sum<'a> {
    values: &'a [f32],
}

impl Body for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self, _: Level) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = self.values.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += value;
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *lane += value;
        }
        fold_sum(&lanes)
    }
}

struct Max<'a> {
    values: &'a [f32],
}

impl Body for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self, _: Level) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = self.values.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane = larger(*lane, *value);
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *lane = larger(*lane, *value);
        }
        fold_max(&lanes)
    }
}

/// `f32::max` without its case for a NaN on the left, which lanes never hold.
#[inline(always)]
fn larger(lane: f32, value: f32) -> f32 {
    if value > lane { value } else { lane }
}

// The folds are not inlined, so that they do not sway how the loops above are vectorized.

#[inline(never)]
fn fold_sum(lanes: &[f32; LANES]) -> f32 {
    fold(*lanes, |a, b| a + b)
}

#[inline(never)]
fn fold_max(lanes: &[f32; LANES]) -> f32 {
    fold(*lanes, larger)
}

/// Combines the lanes to one, halves with halves.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}
