//! Inputs and comparisons for the tests of the kernels.

use super::dispatch::Level;
use super::element::Element;
use half::bf16;

/// The relative error of one rounding to the nearest element, and that of the f32 arithmetic before
/// it. Exposed per element type, so that a test is written once for both.
pub(super) trait Tolerance: Element {
    /// Half a unit in the last place, plus the error of a few dozen f32 operations.
    const RELATIVE: f64;
}

impl Tolerance for f32 {
    const RELATIVE: f64 = 2e-6;
}

impl Tolerance for bf16 {
    // 2^-8 for the rounding of 8 significant bits; the f32 error may tip it over, hence the other term.
    const RELATIVE: f64 = 1.0 / 256.0 + 2e-6;
}

/// `len` numbers spread over `[-scale, scale)`, the same in each run: a linear congruential generator.
pub(super) fn sample<E: Element>(len: usize, scale: f32) -> Vec<E> {
    let mut state = 0x853c_49e6_748f_ea9b_u64 ^ (len as u64) << 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        E::from_f32(((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * scale)
    };
    (0..len).map(|_| next()).collect()
}

/// In f64.
pub(super) fn exact<E: Element>(values: &[E]) -> Vec<f64> {
    values.iter().map(|value| f64::from(value.to_f32())).collect()
}

/// Asserts that `found` is `expected` within the tolerance of the element type, relative to the
/// expected value plus `scale`, the size of the terms that may have canceled in it.
pub(super) fn assert_close<E: Tolerance>(found: &[E], expected: &[f64], scale: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    // Cancellation happens in f32, whatever the element.
    let absolute = f32::RELATIVE * scale;
    for (index, (found, expected)) in exact(found).iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        let allowed = E::RELATIVE * expected.abs() + absolute;
        assert!(error <= allowed, "{what}[{index}] = {found}, expected {expected}");
    }
}

/// Asserts that both are the same bits.
pub(super) fn assert_same<E: Element>(left: &[E], right: &[E], what: &str) {
    assert_eq!(left.len(), right.len(), "{what}");
    let same = |(l, r): (&E, &E)| l.to_f32().to_bits() == r.to_f32().to_bits();
    let first = left.iter().zip(right).position(|pair| !same(pair));
    assert_eq!(first, None, "{what}: first difference");
}

/// Asserts that `run` gives the same bits at every level of the machine.
pub(super) fn assert_same_at_all_levels<E: Element>(what: &str, run: impl Fn(Level) -> Vec<E>) {
    let expected = run(Level::detect());
    for level in Level::available() {
        assert_same(&run(level), &expected, &format!("{what} at {level:?}"));
    }
}
