//! The code books' structure and the nearest code, against a search over all values. Bit parity
//! with bitsandbytes is in `tests/parity.rs`.

use super::{CodeBook, Place};
use crate::QUANTIZED_BLOCK_ELEMENTS;
use proptest::prelude::*;

/// The nearest code by looking at each: distances in f32, ties to the smaller code.
fn nearest_of_all(book: &CodeBook, value: f32) -> u8 {
    let distance = |code: usize| (book.values()[code] - value).abs();
    (0..256).reduce(|best, code| if distance(code) < distance(best) { code } else { best }).unwrap()
        as u8
}

fn books() -> [&'static CodeBook; 2] {
    [CodeBook::signed(), CodeBook::unsigned()]
}

#[test]
fn books_are_ascending_and_have_their_ends() {
    for book in books() {
        assert!(book.values().is_sorted_by(|a, b| a < b));
        assert_eq!(book.values()[255], 1.0);
        assert_eq!(book.values()[usize::from(book.zero_code())], 0.0);
    }
    let signed = CodeBook::signed();
    assert_eq!((signed.zero_code(), signed.values()[0]), (127, -signed.values()[254]));
    assert!((signed.values()[0] + 0.992_97).abs() < 1e-5);
    assert!((signed.values()[128] - 5.5e-7).abs() < 1e-12);
    assert!((CodeBook::unsigned().values()[1] - 3.25e-7).abs() < 1e-12);
}

#[test]
fn the_nearest_code_is_found_around_every_threshold_and_bin() {
    for book in books() {
        let bins = (0_u32..=0x3f80).map(|bin| f32::from_bits(bin << 16));
        let around = book.thresholds().iter().chain(book.values()).copied().chain(bins);
        for value in around {
            let mut near = [value.next_down(), value, value.next_up()].map(|v| v.clamp(-1.0, 1.0));
            for _ in 0..2 {
                for value in near {
                    let found = book.nearest(Place::of(value));
                    assert_eq!(found, nearest_of_all(book, value), "{value:e}");
                }
                near = near.map(|v| -v);
            }
        }
    }
}

#[test]
fn a_block_without_a_normal_number_is_zero() {
    for book in books() {
        for tiny in [0.0, -0.0, 1e-40, -1e-40, f32::NAN, f32::INFINITY] {
            let (mut codes, mut scales) = ([9; 3], [9.0; 1]);
            book.quantize(&[tiny; 3], &mut codes, &mut scales).unwrap();
            assert_eq!((codes, scales), ([book.zero_code(); 3], [0.0]));
        }
    }
}

#[test]
fn non_finite_elements_become_zero_and_spoil_no_others() {
    let values = [1.0, f32::NAN, -0.5, f32::INFINITY, f32::NEG_INFINITY];
    let (mut codes, mut scales, mut back) = ([0; 5], [0.0], [0.0; 5]);
    let book = CodeBook::signed();
    book.quantize(&values, &mut codes, &mut scales).unwrap();
    book.dequantize(&codes, &scales, &mut back).unwrap();
    assert_eq!((scales[0], back[0], back[1], back[3], back[4]), (1.0, 1.0, 0.0, 0.0, 0.0));
    assert!((back[2] + 0.5).abs() < 0.01);
}

#[test]
fn lengths_are_named() {
    let book = CodeBook::signed();
    let error = book.quantize(&[0.0; 300], &mut [0; 299], &mut [0.0; 2]).unwrap_err().to_string();
    assert!(error.starts_with("buffer codes has 299 elements"), "{error}");
    let error = book.dequantize(&[0; 300], &[0.0; 1], &mut [0.0; 300]).unwrap_err().to_string();
    assert!(error.starts_with("buffer scales has 1 elements where the range has 2"), "{error}");
}

/// Values of one or two blocks over many magnitudes.
fn blocks() -> impl Strategy<Value = Vec<f32>> {
    let value = (-1.0_f32..1.0, 0..9_i32).prop_map(|(x, decade)| x * 10_f32.powi(-decade));
    prop::collection::vec(value, 1..2 * QUANTIZED_BLOCK_ELEMENTS)
}

proptest! {
    #[test]
    fn errors_are_within_half_the_local_gap_and_signs_stay(
        values in blocks(), exponent in -20..20_i32, signed in any::<bool>(),
    ) {
        let book = if signed { CodeBook::signed() } else { CodeBook::unsigned() };
        let values: Vec<f32> = values
            .iter()
            .map(|v| if signed { *v } else { v.abs() } * 2_f32.powi(exponent))
            .collect();
        let mut codes = vec![0; values.len()];
        let mut scales = vec![0.0; values.len().div_ceil(QUANTIZED_BLOCK_ELEMENTS)];
        let mut back = vec![0.0; values.len()];
        book.quantize(&values, &mut codes, &mut scales).unwrap();
        book.dequantize(&codes, &scales, &mut back).unwrap();
        for (i, (&value, &found)) in values.iter().zip(&back).enumerate() {
            prop_assert!(value * found >= 0.0, "{value} became {found}");
            let code = usize::from(codes[i]);
            let gaps = book.values();
            let left = gaps[code] - gaps[code.saturating_sub(1)];
            let right = gaps[(code + 1).min(255)] - gaps[code];
            // Below the first code lies half a gap more, down to minus one.
            let half = 0.5 * left.max(right);
            let scale = scales[i / QUANTIZED_BLOCK_ELEMENTS];
            // Two roundings of numbers below one.
            prop_assert!((value - found).abs() <= (half + 1.2e-7) * scale, "{value} {found}");
        }
    }

    /// Where the largest magnitude is positive it has a code of its own, and so keeps the scale;
    /// minus one has none, and its block shrinks by 0.7 % when quantized again.
    #[test]
    fn quantizing_again_changes_nothing(values in blocks(), signed in any::<bool>()) {
        let book = if signed { CodeBook::signed() } else { CodeBook::unsigned() };
        let mut values: Vec<f32> =
            values.iter().map(|v| if signed { *v } else { v.abs() }).collect();
        values.iter_mut().step_by(QUANTIZED_BLOCK_ELEMENTS).for_each(|v| *v = 1.5);
        let mut scales = vec![0.0; values.len().div_ceil(QUANTIZED_BLOCK_ELEMENTS)];
        let (mut codes, mut again) = (vec![0; values.len()], vec![0; values.len()]);
        book.quantize(&values, &mut codes, &mut scales).unwrap();
        let first = scales.clone();
        book.dequantize(&codes, &scales, &mut values).unwrap();
        book.quantize(&values, &mut again, &mut scales).unwrap();
        prop_assert_eq!((codes, first), (again, scales));
    }
}

/// Both ways to codes and back, of one whole block; nothing on processors that have but one.
fn compare_ways(book: &CodeBook, values: &[f32]) {
    let (mut permuted, mut loaded) = ([0; QUANTIZED_BLOCK_ELEMENTS], [1; QUANTIZED_BLOCK_ELEMENTS]);
    let Some(scale) = book.permuted_codes(values, &mut permuted) else { return };
    assert_eq!(scale.to_bits(), book.loaded_codes(values, &mut loaded).to_bits());
    assert_eq!(permuted, loaded, "{values:?}");
    let mut back = [[0.0; QUANTIZED_BLOCK_ELEMENTS], [1.0; QUANTIZED_BLOCK_ELEMENTS]];
    assert!(book.permuted_values(&permuted, scale, &mut back[0]));
    book.loaded_values(&permuted, scale, &mut back[1]);
    assert_eq!(back[0].map(f32::to_bits), back[1].map(f32::to_bits));
}

#[test]
fn permutations_find_the_codes_that_loads_find_around_every_threshold() {
    for book in books() {
        let bins = (0_u32..=0x3f80).map(|bin| f32::from_bits(bin << 16));
        let around = book.thresholds().iter().chain(book.values()).copied().chain(bins);
        let near = around.flat_map(|value| [value.next_down(), value, value.next_up(), -value]);
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e-40];
        let values: Vec<f32> =
            near.chain(odd).filter(|value| !(value.abs() > 1.0 && value.is_finite())).collect();
        for block in values.chunks(QUANTIZED_BLOCK_ELEMENTS - 1) {
            // The scale is one, so that every value stays where it is; and a third, so that not.
            for largest in [1.0, 3.0] {
                let mut whole = [0.0; QUANTIZED_BLOCK_ELEMENTS];
                whole[..block.len()].copy_from_slice(block);
                whole[QUANTIZED_BLOCK_ELEMENTS - 1] = largest;
                compare_ways(book, &whole);
            }
        }
    }
}

#[test]
fn permutations_read_the_values_that_loads_read() {
    let codes: [u8; QUANTIZED_BLOCK_ELEMENTS] = std::array::from_fn(|i| (i * 89 % 256) as u8);
    for book in books() {
        let mut back = [[0.0; QUANTIZED_BLOCK_ELEMENTS]; 2];
        if book.permuted_values(&codes, 0.37, &mut back[0]) {
            book.loaded_values(&codes, 0.37, &mut back[1]);
            assert_eq!(back[0].map(f32::to_bits), back[1].map(f32::to_bits));
        }
    }
}

proptest! {
    #[test]
    fn permutations_find_the_codes_that_loads_find(
        values in prop::collection::vec(-1.0_f32..1.0, QUANTIZED_BLOCK_ELEMENTS),
        exponent in -30..20_i32,
    ) {
        let values: Vec<f32> = values.iter().map(|v| v.powi(5) * 2_f32.powi(exponent)).collect();
        for book in books() {
            compare_ways(book, &values);
        }
    }
}
