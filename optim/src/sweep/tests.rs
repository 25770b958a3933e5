//! The same element gets the same bits at every vector level and wherever a range is cut.

use super::sweep_at;
use crate::dispatch::SimdLevel;
use crate::{
    AdamW, AdamWConfig, Elements, Lion, LionConfig, Real, RuleConfig, Scalars, StateKind, Working,
};
use half::bf16;
use proptest::prelude::*;

const SCALARS: Scalars = Scalars { lr: 1e-3, weight_decay: 0.1, grad_scale: 0.37, step: 3 };

/// Buffers of one update.
#[derive(Clone, Debug, PartialEq)]
struct Buffers<T> {
    master: Vec<T>,
    grad: Vec<T>,
    state: Vec<Vec<T>>,
    copy: Vec<bf16>,
}

impl<T: Real> Buffers<T> {
    /// Values over many magnitudes and zeros of both signs; a second moment is not
    /// negative. No NaN: its payload is the one thing that may differ.
    fn new(n: usize, states: usize, seed: u64) -> Self {
        let mut bits = seed.wrapping_mul(2) + 1;
        let mut next = || {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            let value = f64::from((bits >> 33) as u32) / f64::from(1_u32 << 30) - 1.0;
            match (bits >> 20) % 31 {
                0 => T::from_f64(0.0),
                1 => T::from_f64(-0.0),
                2 => T::from_f64(value * 1e-30),
                3 => T::from_f64(value * 1e9),
                _ => T::from_f64(value),
            }
        };
        let master = (0..n).map(|_| next()).collect();
        let grad = (0..n).map(|_| next()).collect();
        let mut state: Vec<Vec<T>> =
            (0..states).map(|_| (0..n).map(|_| next()).collect()).collect();
        if let Some(second) = state.get_mut(1) {
            second.iter_mut().for_each(|v| *v = *v * *v);
        }
        Self { master, grad, state, copy: vec![bf16::ZERO; n] }
    }

    fn elements(&mut self, copies: bool) -> Elements<'_, T> {
        Elements {
            master: &mut self.master,
            grad: &self.grad,
            state: self.state.iter_mut().map(|s| &mut s[..]).collect(),
            working: if copies { Working::Bf16(&mut self.copy) } else { Working::None },
        }
    }

    fn bits(&self) -> Vec<u64> {
        let all = self.master.iter().chain(self.state.iter().flatten());
        let copy = self.copy.iter().map(|c| u64::from(c.to_bits()));
        all.map(|v| v.to_f64().to_bits()).chain(copy).collect()
    }
}

fn adamw_at<T: Real>(level: SimdLevel, elements: Elements<T>) {
    let rule = AdamW::new(AdamWConfig::default()).unwrap();
    let names = AdamW::STATE_KINDS.map(StateKind::name);
    sweep_at(level, rule.step(&SCALARS), elements.checked("adamw", names).unwrap());
}

fn lion_at<T: Real>(level: SimdLevel, elements: Elements<T>) {
    let rule = Lion::new(LionConfig::default()).unwrap();
    let names = Lion::STATE_KINDS.map(StateKind::name);
    sweep_at(level, rule.step(&SCALARS), elements.checked("lion", names).unwrap());
}

fn levels_agree<T: Real>(n: usize, copies: bool) {
    let (start_two, start_one) = (Buffers::<T>::new(n, 2, 1), Buffers::<T>::new(n, 1, 2));
    let (mut two, mut one) = (start_two.clone(), start_one.clone());
    adamw_at(SimdLevel::Portable, two.elements(copies));
    lion_at(SimdLevel::Portable, one.elements(copies));
    assert_ne!(two.bits(), start_two.bits());
    for &level in SimdLevel::ALL.iter().filter(|level| level.is_available()) {
        let (mut other_two, mut other_one) = (start_two.clone(), start_one.clone());
        adamw_at(level, other_two.elements(copies));
        lion_at(level, other_one.elements(copies));
        assert_eq!(other_two.bits(), two.bits(), "adamw at {level:?}, {n} elements");
        assert_eq!(other_one.bits(), one.bits(), "lion at {level:?}, {n} elements");
    }
}

#[test]
fn vector_levels_agree_bit_for_bit() {
    for n in [1, 3, 15, 16, 17, 63, 64, 1000, 4099] {
        for copies in [false, true] {
            levels_agree::<f32>(n, copies);
            levels_agree::<f64>(n, copies);
        }
    }
}

proptest! {
    #[test]
    fn cuts_do_not_change_bits(
        n in 1_usize..700,
        cuts in prop::collection::vec(0.0_f64..1.0, 0..6),
        seed in 0_u64..1000,
        lion in any::<bool>(),
    ) {
        let config = if lion {
            RuleConfig::Lion(LionConfig::default())
        } else {
            RuleConfig::AdamW(AdamWConfig::default())
        };
        let rule = config.build().unwrap();
        let mut whole = Buffers::<f32>::new(n, rule.state_kinds().len(), seed);
        let mut pieces = whole.clone();
        rule.update(whole.elements(true), &SCALARS).unwrap();
        let mut rest = pieces.elements(true);
        for cut in cuts {
            let (head, tail) = { let mid = (cut * rest.master.len() as f64) as usize; rest.split_at(mid) };
            rule.update(head, &SCALARS).unwrap();
            rest = tail;
        }
        rule.update(rest, &SCALARS).unwrap();
        prop_assert_eq!(whole.bits(), pieces.bits());
    }
}
