//! Sums and maxima, at all levels of the machine.

use super::super::dispatch::Level;
use super::super::testing::sample;
use super::{max, sum};

/// Rounding of a few additions in sequence; the lanes keep it far below that of a plain loop.
const SUM_TOLERANCE: f64 = 1e-6;

#[test]
fn sums_and_maxima_at_all_levels() {
    for len in [0, 1, 7, 31, 32, 33, 64, 576, 1000] {
        let values: Vec<f32> = sample(len, 1.0);
        let exact: f64 = values.iter().map(|v| f64::from(*v)).sum();
        let scale: f64 = values.iter().map(|v| f64::from(v.abs())).sum();
        let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first = sum(Level::detect(), &values);
        assert!((f64::from(first) - exact).abs() <= SUM_TOLERANCE * scale);
        for level in Level::available() {
            assert_eq!(sum(level, &values).to_bits(), first.to_bits(), "{level:?} {len}");
            assert_eq!(max(level, &values), largest, "{level:?} {len}");
        }
    }
}
