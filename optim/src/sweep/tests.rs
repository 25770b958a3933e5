//! The same element gets the same bits at every vector level and wherever a range is cut.

use crate::dispatch::SimdLevel;
use crate::sample::{Buffers, SCALARS, rules};
use crate::{QUANTIZED_BLOCK_ELEMENTS, Real, Rule, Scalars};
use proptest::prelude::*;

/// Three steps with the same gradient, so that later ones start from states of an update.
fn three_steps<T: Real>(rule: &Rule, level: SimdLevel, buffers: &mut Buffers<T>, copies: bool) {
    for step in 1..=3 {
        let scalars = Scalars { step, ..SCALARS };
        rule.update_at(level, buffers.elements(copies), &scalars).unwrap();
    }
}

fn levels_agree<T: Real>(rule: &Rule, n: usize, copies: bool) {
    let start = Buffers::<T>::new(rule.state_specs(usize::MAX), n, 1);
    let mut portable = start.clone();
    three_steps(rule, SimdLevel::Portable, &mut portable, copies);
    assert_ne!(portable.bits(), start.bits());
    for &level in SimdLevel::ALL.iter().filter(|level| level.is_available()) {
        let mut other = start.clone();
        three_steps(rule, level, &mut other, copies);
        assert_eq!(other.bits(), portable.bits(), "{} at {level:?}, {n} elements", rule.name());
    }
}

#[test]
fn vector_levels_agree_bit_for_bit() {
    for rule in rules() {
        for n in [1, 3, 15, 16, 17, 63, 64, 255, 257, 1000, 4099] {
            for copies in [false, true] {
                levels_agree::<f32>(&rule, n, copies);
                levels_agree::<f64>(&rule, n, copies);
            }
        }
    }
}

proptest! {
    #[test]
    fn cuts_do_not_change_bits(
        n in 1_usize..2000,
        cuts in prop::collection::vec(0.0_f64..1.0, 0..6),
        seed in 0_u64..1000,
        which in 0_usize..8,
    ) {
        let rule = rules()[which];
        let specs = rule.state_specs(usize::MAX);
        let mut whole = Buffers::<f32>::new(specs, n, seed);
        let mut pieces = whole.clone();
        let grain = if whole.elements(false).has_codes() { QUANTIZED_BLOCK_ELEMENTS } else { 1 };
        for step in 1..=2 {
            let scalars = Scalars { step, ..SCALARS };
            rule.update(whole.elements(true), &scalars).unwrap();
            let mut rest = pieces.elements(true);
            for cut in &cuts {
                let mid = (cut * rest.master.len() as f64) as usize / grain * grain;
                let (head, tail) = rest.split_at(mid);
                rule.update(head, &scalars).unwrap();
                rest = tail;
            }
            rule.update(rest, &scalars).unwrap();
        }
        prop_assert_eq!(whole.bits(), pieces.bits());
    }
}
