//! Stochastic rounding: exact values stay, others are right on average, bits depend on the index.

use super::{Rounding, round_stochastically};
use half::bf16;

fn bits(seed: u64, step: u64, first: usize, n: usize) -> Vec<u32> {
    let mut bits = vec![0; n];
    Rounding::new(seed, step).fill(first, &mut bits);
    bits
}

#[test]
fn bits_follow_from_seed_step_and_index() {
    let whole = bits(1, 2, 0, 1000);
    assert_eq!(whole[300..400], bits(1, 2, 300, 100));
    assert_ne!(whole, bits(2, 2, 0, 1000));
    assert_ne!(whole, bits(1, 3, 0, 1000));
    assert_ne!(whole, bits(1, 2, 1 << 32, 1000));
}

#[test]
fn bits_are_even_and_independent() {
    const N: usize = 1 << 16;
    // Six standard deviations of a mean of N fair bits.
    const TOLERANCE: f64 = 6.0 * 0.5 / 256.0;
    let (now, later) = (bits(5, 1, 0, N + 1), bits(5, 2, 0, N));
    let share = |pairs: &mut dyn Iterator<Item = u32>, bit: u32| {
        pairs.map(|x| f64::from((x >> bit) & 1)).sum::<f64>() / N as f64
    };
    for bit in 0..32 {
        let cases = [
            ("is one", share(&mut now[..N].iter().copied(), bit)),
            ("is its neighbor's", share(&mut (0..N).map(|i| now[i] ^ now[i + 1]), bit)),
            ("is that of a step later", share(&mut (0..N).map(|i| now[i] ^ later[i]), bit)),
            (
                "is the other state's",
                share(&mut (0..N).map(|i| now[i] ^ now[i].rotate_left(16)), bit),
            ),
        ];
        for (what, share) in cases {
            assert!((share - 0.5).abs() < TOLERANCE, "bit {bit} {what}: {share}");
        }
    }
}

#[test]
fn exact_values_stay() {
    for value in [0.0, -0.0, 1.0, -3.5, 1e30_f32, f32::INFINITY, f32::NEG_INFINITY] {
        let exact = bf16::from_f32(value);
        for random in [0, 1, 0x7fff, 0xffff] {
            let rounded = round_stochastically(exact.to_f32(), random);
            assert_eq!(rounded.to_bits(), exact.to_bits());
        }
    }
    assert_eq!(round_stochastically(f32::NAN, 0xffff).to_bits(), 0x7fc0);
    let all_ones = f32::from_bits(0xffff_ffff);
    assert_eq!(round_stochastically(all_ones, 0xffff).to_bits(), 0x7fc0);
}

#[test]
fn the_mean_is_the_value() {
    // Between 1 and 1 + 2^-7, a quarter of the way up; and its negative.
    let value = 1.0 + 0.25 / 128.0_f32;
    for value in [value, -value] {
        let random = bits(9, 1, 0, 1 << 16);
        for shift in [0, 16] {
            let rounded = random.iter().map(|r| round_stochastically(value, r >> shift).to_f64());
            let mean = rounded.sum::<f64>() / f64::from(1 << 16);
            // Six standard deviations of the mean of 2^16 draws that are 2^-7 apart.
            assert!((mean - f64::from(value)).abs() < 6.0 * 0.44 / 128.0 / 256.0, "{mean}");
        }
    }
}
