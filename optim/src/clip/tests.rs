//! The sum of squares has the same bits for every block size, cut and vector level.

use super::*;
use proptest::prelude::*;

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as f64 * 0.61).sin() * (1.0 + i as f64).sqrt()) as f32).collect()
}

fn blocks(values: &[f32], block_elements: usize) -> Vec<f64> {
    let mut sums = vec![f64::NAN; num_blocks(values.len(), block_elements)];
    block_squared_norms(values, block_elements, &mut sums).unwrap();
    sums
}

#[test]
fn is_the_sum_of_squares() {
    assert_eq!(squared_norm(&[3.0_f32, 4.0]), 25.0);
    assert_eq!(squared_norm::<f64>(&[]), 0.0);
    let values = wave(10_007);
    let plain: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let tree = squared_norm(&values);
    // Two orders of 1e4 additions in f64.
    assert!((tree - plain).abs() < 1e-12 * plain, "{tree} {plain}");
}

#[test]
fn vector_levels_agree_bit_for_bit() {
    for n in [1, 31, 33, 255, 257, 4097, 20_011] {
        let values = wave(n);
        let expected = blocks(&values, BLOCK_ELEMENTS);
        for &level in SimdLevel::ALL.iter().filter(|level| level.is_available()) {
            let mut sums = vec![0.0; expected.len()];
            block_squared_norms_at(level, &values, BLOCK_ELEMENTS, &mut sums).unwrap();
            assert_eq!(sums, expected, "{level:?}, {n} elements");
        }
    }
}

proptest! {
    /// Ranks may cut at any multiple of their block, and blocks may have any allowed size.
    #[test]
    fn total_does_not_depend_on_blocks_or_cuts(
        n in 0_usize..40_000, log in 8_u32..15, cut in 0.0_f64..1.0,
    ) {
        let (values, block) = (wave(n), 1 << log);
        let whole = blocks(&values, block);
        prop_assert_eq!(tree_sum(&whole).to_bits(), squared_norm(&values).to_bits());
        let mid = ((cut * whole.len() as f64) as usize * block).min(n);
        let mut parts = blocks(&values[..mid], block);
        parts.extend(blocks(&values[mid..], block));
        prop_assert_eq!(parts, whole);
    }
}

#[test]
fn non_finite_values_make_it_non_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = wave(5000);
        values[4321] = bad;
        assert!(!squared_norm(&values).is_finite(), "{bad}");
        assert!(blocks(&values, BLOCK_ELEMENTS)[0].is_finite());
    }
    assert_eq!(squared_norm(&[1e200_f64]), f64::INFINITY);
    assert!(squared_norm(&[f32::MAX; 300]).is_finite());
}

#[test]
fn scale_clips_and_never_raises() {
    assert!((clip_scale(3.0, 1.0) - 0.333_333_2).abs() < 1e-7);
    assert_eq!(clip_scale(0.0, 1.0), 1.0);
    assert_eq!(clip_scale(0.5, 1.0), 1.0);
    assert!(clip_scale(f64::NAN, 1.0).is_nan());
    assert_eq!(clip_scale(f64::INFINITY, 1.0), 0.0);
}

#[test]
fn refusals_are_named() {
    let text = |block, room| {
        block_squared_norms(&[1.0_f32; 600], block, &mut vec![0.0; room]).unwrap_err().to_string()
    };
    assert_eq!(text(300, 2), "block_elements = 300 is not a power of two that is at least 256");
    assert!(text(128, 5).contains("block_elements = 128"));
    assert_eq!(
        text(256, 2),
        "600 values in blocks of 256 have 3 sums, found room for 2; size it with num_blocks"
    );
}
