//! Rounding against the `half` crate, for every upper half and the lower halves that decide.

use super::{Element, narrow, widen};
use half::bf16;

#[test]
fn rounding_agrees_with_half_for_all_upper_halves() {
    for upper in 0..=u32::from(u16::MAX) {
        for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let value = f32::from_bits(upper << 16 | lower);
            let (ours, theirs) = (<bf16 as Element>::from_f32(value), bf16::from_f32(value));
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{value:e} {upper:x} {lower:x}");
        }
    }
}

#[test]
fn widening_is_exact_and_narrowing_inverts_it() {
    let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).filter(|v| !v.is_nan()).collect();
    let mut wide = vec![0.0; all.len()];
    widen(&all, &mut wide);
    assert!(all.iter().zip(&wide).all(|(v, w)| v.to_f32().to_bits() == w.to_bits()));
    let mut back = vec![bf16::ZERO; all.len()];
    narrow(&wide, &mut back);
    assert!(all.iter().zip(&back).all(|(v, b)| v.to_bits() == b.to_bits()));
}
