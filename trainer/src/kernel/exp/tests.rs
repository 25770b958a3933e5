//! The exponential against f64, over its whole range.

use super::exp;

/// As promised by the docs of [`exp`].
const MAX_ERROR_ULP: f64 = 2.0;

#[test]
fn error_is_at_most_two_units_in_the_last_place() {
    let mut worst = 0.0f64;
    // A step that is no short binary fraction, so that all mantissas occur.
    let mut x = -87.3f32;
    while x < 88.3 {
        let exact = f64::from(x).exp();
        let rounded = exact as f32;
        let ulp = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
        worst = worst.max((f64::from(exp(x)) - exact).abs() / ulp);
        x += 0.000_123_7;
    }
    assert!(worst <= MAX_ERROR_ULP, "error of {worst} ulp");
}

#[test]
fn ends_of_the_range() {
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(-0.0), 1.0);
    assert_eq!(exp(-88.0), 0.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(89.0), f32::INFINITY);
    assert_eq!(exp(f32::INFINITY), f32::INFINITY);
    assert!(exp(f32::NAN).is_nan());
}
