//! Hand-derived values, the torch fixtures' twin is in `tests/parity.rs`; ranges and equations.

use super::{Decay, Schedule, ScheduleConfig};
use proptest::prelude::*;

fn schedule(decay: Decay, warmup_steps: u64, steps: u64) -> Schedule {
    Schedule::new(ScheduleConfig { lr: 2.0, warmup_steps, decay }, steps).unwrap()
}

#[track_caller]
fn check(decay: Decay, expected: &[(u64, f64)]) {
    let schedule = schedule(decay, 10, 100);
    for &(step, value) in expected {
        let found = schedule.multiplier(step);
        assert!((found - value).abs() < 1e-15, "step {step}: {found}, expected {value}");
        assert_eq!(schedule.lr(step), 2.0 * found);
    }
}

#[test]
fn hand_derived_values() {
    let root = 0.5_f64.sqrt();
    check(Decay::Constant, &[(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (99, 1.0), (500, 1.0)]);
    // cos(pi / 3) = 1 / 2 at p = 30 / 90: 0.1 + 0.9 * 0.75 = 0.775.
    check(
        Decay::Cosine { final_ratio: 0.1 },
        &[(0, 0.1), (9, 1.0), (10, 1.0), (40, 0.775), (55, 0.55), (100, 0.1), (1000, 0.1)],
    );
    check(
        Decay::Linear { final_ratio: 0.0 },
        &[(9, 1.0), (10, 1.0), (55, 0.5), (99, 1.0 / 90.0), (100, 0.0), (u64::MAX, 0.0)],
    );
    check(
        Decay::Wsd { cooldown_fraction: 0.2, final_ratio: 0.2 },
        &[(10, 1.0), (79, 1.0), (80, 1.0), (85, 0.6), (90, 0.2 + 0.8 * (1.0 - root)), (100, 0.2)],
    );
}

#[test]
fn the_whole_run_may_be_warmup() {
    let schedule = schedule(Decay::Linear { final_ratio: 0.5 }, 4, 4);
    let values: Vec<f64> = (0..6).map(|step| schedule.multiplier(step)).collect();
    assert_eq!(values, [0.25, 0.5, 0.75, 1.0, 0.5, 0.5]);
}

#[test]
fn refusals_hold_the_equation() {
    let text = |lr, warmup_steps, decay| {
        let config = ScheduleConfig { lr, warmup_steps, decay };
        Schedule::new(config, 100).unwrap_err().to_string()
    };
    let wsd = Decay::Wsd { cooldown_fraction: 0.2, final_ratio: 0.0 };
    assert!(text(1.0, 81, wsd).starts_with(
        "schedule.warmup_steps + cooldown_steps <= run.steps does not hold: 81 + 20 > 100; lower"
    ));
    assert!(text(1.0, 101, Decay::Constant).contains("101 + 0 > 100"));
    assert!(text(1.0, u64::MAX, wsd).contains("does not hold"));
    assert!(text(0.0, 0, wsd).starts_with("optim.lr = 0 is out of range: expected 0 < lr"));
    let none = Decay::Wsd { cooldown_fraction: 0.0, final_ratio: 0.0 };
    assert!(text(1.0, 0, none).contains("schedule.cooldown_fraction = 0"));
    let rising = Decay::Cosine { final_ratio: 1.5 };
    assert!(text(1.0, 0, rising).contains("schedule.final_ratio = 1.5"));
}

proptest! {
    /// Up to the peak, then never up again, and always within [0, 1].
    #[test]
    fn rises_then_falls(
        steps in 1_u64..300, warmup in 0.0_f64..1.0, fraction in 0.01_f64..1.0,
        ratio in 0.0_f64..=1.0, kind in 0..4,
    ) {
        let decay = match kind {
            0 => Decay::Constant,
            1 => Decay::Cosine { final_ratio: ratio },
            2 => Decay::Linear { final_ratio: ratio },
            _ => Decay::Wsd { cooldown_fraction: fraction, final_ratio: ratio },
        };
        let warmup_steps = (warmup * steps as f64) as u64;
        let config = ScheduleConfig { lr: 1.0, warmup_steps, decay };
        let Ok(schedule) = Schedule::new(config, steps) else { return Ok(()) };
        let values: Vec<f64> = (0..steps + 3).map(|step| schedule.multiplier(step)).collect();
        for (step, pair) in values.windows(2).enumerate() {
            prop_assert!((0.0..=1.0 + 1e-15).contains(&pair[1]));
            let rises = (step as u64) + 1 < warmup_steps;
            let monotone = if rises { pair[0] < pair[1] } else { pair[0] + 1e-15 >= pair[1] };
            prop_assert!(monotone, "step {step}: {pair:?}");
        }
    }
}

#[test]
fn averaging_weights_are_shares_of_squared_largest_rates() {
    for (warmup, decay) in [
        (0, Decay::Constant),
        (10, Decay::Constant),
        (1, Decay::Constant),
        (30, Decay::Cosine { final_ratio: 0.0 }),
    ] {
        let schedule = schedule(decay, warmup, 100);
        let (mut largest, mut sum) = (0.0_f64, 0.0);
        for step in 0..100 {
            largest = largest.max(schedule.lr(step));
            sum += largest * largest;
            let (found, expected) = (schedule.averaging_weight(step), largest * largest / sum);
            // A sum of a hundred numbers against a closed form.
            assert!((found / expected - 1.0).abs() < 1e-13, "{warmup} {step}: {found} {expected}");
        }
    }
    assert!((schedule(Decay::Constant, 2, 100).averaging_weight(2) - 1.0 / 2.25).abs() < 1e-15);
}
