//! Against integer arithmetic and by hand, in any order and any division.

use proptest::{collection::vec, prelude::*};

use super::*;

fn sum_of(values: &[f64]) -> ExactSum {
    let mut sum = ExactSum::new();
    values.iter().for_each(|&value| sum.add(value));
    sum
}

#[track_caller]
fn assert_sum(values: &[f64], expected: f64) {
    assert_eq!(sum_of(values).value().to_bits(), expected.to_bits(), "{values:?}");
    let negated: Vec<f64> = values.iter().map(|value| -value).collect();
    let expected = if expected == 0.0 { 0.0 } else { -expected };
    assert_eq!(sum_of(&negated).value().to_bits(), expected.to_bits(), "{negated:?}");
}

const LEAST: f64 = f64::from_bits(1);
/// Half of the distance between the largest f64 and the one below it.
const HALF_OF_LAST: f64 = f64::from_bits((1023 + 970) << 52);

#[test]
fn sums_by_hand() {
    assert_sum(&[], 0.0);
    assert_sum(&[-0.0, -0.0], 0.0);
    assert_sum(&[1.0, -1.0], 0.0);
    assert_sum(&[0.1], 0.1);
    assert_sum(&[1e308, 1e308, -1e308], 1e308);
    assert_sum(&[1e308, 1e308, LEAST, -1e308, -1e308], LEAST);
    assert_sum(&[1e16, 1.0, -1e16], 1.0);
    assert_sum(&[LEAST; 3], f64::from_bits(3));
    assert_sum(&[f64::MIN_POSITIVE, -LEAST], f64::from_bits((1 << 52) - 1));
    assert_sum(&[f64::MIN_POSITIVE, f64::MIN_POSITIVE, LEAST], 2.0 * f64::MIN_POSITIVE + LEAST);
}

#[test]
fn ties_go_to_even_and_anything_below_breaks_them() {
    // 2^53 + 1 lies between 2^53 and 2^53 + 2.
    let even = 9_007_199_254_740_992.0;
    assert_sum(&[even, 1.0], even);
    assert_sum(&[even, 1.0, LEAST], even + 2.0);
    assert_sum(&[even, 1.0, -LEAST], even);
    assert_sum(&[even + 2.0, 1.0], even + 4.0);
    assert_sum(&[even + 2.0, 1.0, -LEAST], even + 2.0);
}

#[test]
fn only_sums_that_are_too_large_themselves_are_infinite() {
    assert_sum(&[f64::MAX], f64::MAX);
    assert_sum(&[f64::MAX, HALF_OF_LAST, -LEAST], f64::MAX);
    assert_sum(&[f64::MAX, HALF_OF_LAST], f64::INFINITY);
    assert_sum(&[f64::MAX; 1000], f64::INFINITY);
    let mut balanced = vec![f64::MAX; 1000];
    balanced.extend([-f64::MAX; 999]);
    assert_sum(&balanced, f64::MAX);
}

#[test]
fn what_is_not_finite_survives_merging_and_digits() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut sum = sum_of(&[1.0]);
        sum.merge(&sum_of(&[value, -value, 2.0]));
        assert!(sum.value().is_nan());
        let digits = sum.to_digits();
        let twice: Vec<i64> = digits.iter().map(|digit| 2 * digit).collect();
        assert!(ExactSum::from_digits(&twice).value().is_nan());
    }
}

#[test]
fn carries_are_passed_on_in_time() {
    // Doubling a sum by merging counts 2^40 additions, far more than a digit has room for.
    let mut sum = sum_of(&[-1.5]);
    for _ in 0..40 {
        let same = sum.clone();
        sum.merge(&same);
    }
    assert_eq!(sum.value(), -1.5 * 2f64.powi(40));
    // The most that may come: 2^47 of the largest on each of 2^30 ranks.
    let mut most = sum_of(&[f64::MAX]);
    for _ in 0..47 {
        let same = most.clone();
        most.merge(&same);
    }
    let ranks = 1 << 30;
    let mut digits: Vec<i64> = most.to_digits().iter().map(|digit| digit * ranks).collect();
    assert_eq!(ExactSum::from_digits(&digits).value(), f64::INFINITY);
    digits.iter_mut().for_each(|digit| *digit = -*digit);
    assert_eq!(ExactSum::from_digits(&digits).value(), f64::NEG_INFINITY);
}

/// Any finite value: all exponents alike.
fn finite() -> impl Strategy<Value = f64> {
    any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |value| value.is_finite())
}

proptest! {
    #[test]
    fn agrees_with_integers(parts in vec((any::<i64>(), 0u32..60), 0..40), scale in -1020i32..800) {
        // Integers of up to 119 bits, of which each addend is a multiple; i128 sums are exact.
        let mut values = Vec::new();
        let mut exact = 0i128;
        for (number, shift) in parts {
            let number = number >> 11; // fits a mantissa
            values.push(number as f64 * 2f64.powi(shift as i32) * 2f64.powi(scale));
            exact += i128::from(number) << shift;
        }
        // The cast rounds to nearest even, and the scale is a power of two.
        prop_assert_eq!(sum_of(&values).value(), exact as f64 * 2f64.powi(scale));
    }

    #[test]
    fn agrees_with_integers_of_subnormals(bits in vec((any::<bool>(), 0u64..1 << 54), 1..40)) {
        // Below 2^54 the bits of an f64 are a count of the least one, up to exponent 2.
        let count = |bits: u64| match bits >> 52 {
            0 => bits,
            exponent => ((bits & ((1 << 52) - 1)) | 1 << 52) << (exponent - 1),
        };
        let mut exact = 0i128;
        let mut values = Vec::new();
        for (is_negative, bits) in bits {
            let sign = if is_negative { -1.0 } else { 1.0 };
            values.push(sign * f64::from_bits(bits));
            exact += i128::from(count(bits)) * sign as i128;
        }
        prop_assert_eq!(sum_of(&values).value(), exact as f64 * LEAST);
    }

    #[test]
    fn every_order_and_division_gives_the_same_digits(
        (values, shuffled) in vec(finite(), 0..60)
            .prop_flat_map(|values| (Just(values.clone()), Just(values).prop_shuffle())),
        cuts in vec(0usize..4, 60),
    ) {
        let whole = sum_of(&values);
        prop_assert_eq!(sum_of(&shuffled).to_digits(), whole.to_digits());
        let mut parts = vec![ExactSum::new(); 4];
        for (value, part) in shuffled.iter().zip(cuts) {
            parts[part].add(*value);
        }
        let mut merged = ExactSum::new();
        let mut added = vec![0i64; ExactSum::NUM_DIGITS];
        for part in &parts {
            merged.merge(part);
            let digits = part.to_digits();
            prop_assert!(digits[..SUM_DIGITS - 1].iter().all(|d| (0..1 << 32).contains(d)));
            added.iter_mut().zip(digits).for_each(|(sum, digit)| *sum += digit);
        }
        let added = ExactSum::from_digits(&added);
        prop_assert_eq!(merged.to_digits(), whole.to_digits());
        prop_assert_eq!(added.to_digits(), whole.to_digits());
        prop_assert_eq!(added.value().to_bits(), whole.value().to_bits());
    }

    #[test]
    fn the_rounded_sum_leaves_the_least_rest(values in vec(finite(), 1..20)) {
        // Subtracting the value exactly leaves what was rounded off: at most half a step.
        let mut rest = sum_of(&values);
        let value = rest.value();
        if value.is_finite() && value.abs() < f64::MAX {
            rest.add(-value);
            let below = (value.next_up() - value).max(value - value.next_down());
            prop_assert!(rest.value().abs() <= below / 2.0 || below == LEAST && rest.value() == 0.0);
        }
    }
}
