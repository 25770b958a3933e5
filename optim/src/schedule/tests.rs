//! Hand-derived values, the torch fixtures' twin is in `tests/parity.rs`; ranges and equations.

use super::{BatchRamp, Decay, Phase, PhaseMode, Schedule, ScheduleConfig};
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

/// As [`check`], for a schedule that was made otherwise.
#[track_caller]
fn check_values(schedule: &Schedule, expected: &[(u64, f64)]) {
    for &(step, value) in expected {
        let found = schedule.multiplier(step);
        assert!((found - value).abs() < 1e-15, "step {step}: {found}, expected {value}");
    }
}

#[test]
fn the_inverse_root_needs_no_end() {
    check(
        Decay::InverseSqrt,
        &[(0, 0.1), (9, 1.0), (10, (10.0_f64 / 11.0).sqrt()), (39, 0.5), (999, 0.1)],
    );
    let cold = schedule(Decay::InverseSqrt, 0, 100);
    check_values(&cold, &[(0, 1.0), (3, 0.5), (99, 0.1)]);
}

#[test]
fn phases_are_the_hand_derived_ones() {
    let phase = |from_step, mode, rewarm_steps| Phase { from_step, mode, rewarm_steps };
    let linear = schedule(Decay::Linear { final_ratio: 0.0 }, 10, 110);
    // t = step - 50 and T = 60: the line from 10 to 60.
    let fresh = linear.with_phase(phase(50, PhaseMode::Fresh, 0)).unwrap();
    check_values(&fresh, &[(49, 0.61), (50, 0.1), (59, 1.0), (60, 1.0), (85, 0.5), (109, 0.02)]);
    // t = step - 30 and T = 80: 20 at step 50, so 60 of 70 are left.
    let rewound = linear.with_phase(phase(50, PhaseMode::Rewind { to_step: 20 }, 0)).unwrap();
    check_values(&rewound, &[(50, 60.0 / 70.0), (75, 35.0 / 70.0), (109, 1.0 / 70.0), (110, 0.0)]);
    let rewarmed = linear.with_phase(phase(50, PhaseMode::Continue, 4)).unwrap();
    check_values(&rewarmed, &[(49, 0.61), (50, 0.25 * 0.6), (52, 0.75 * 0.58), (53, 0.57)]);
    let wsd = schedule(Decay::Wsd { cooldown_fraction: 0.2, final_ratio: 0.0 }, 0, 100);
    let fresh = wsd.with_phase(phase(60, PhaseMode::Fresh, 0)).unwrap();
    // The cooldown takes 8 of the 40 steps.
    check_values(&fresh, &[(91, 1.0), (92, 1.0), (94, 0.5), (98, 1.0 - 0.75_f64.sqrt())]);
    assert_eq!(fresh.averaging_weight(60), 1.0);
    assert_eq!(fresh.averaging_weight(63), 0.25);
    assert_eq!(fresh.averaging_weight(59), 1.0 / 60.0);
}

#[test]
fn a_phase_outside_of_the_run_is_refused() {
    let linear = schedule(Decay::Linear { final_ratio: 0.0 }, 10, 100);
    let text = |from_step, mode| {
        let phase = Phase { from_step, mode, rewarm_steps: 0 };
        linear.with_phase(phase).unwrap_err().to_string()
    };
    assert!(text(20, PhaseMode::Rewind { to_step: 30 }).contains("does not hold: 30, 20, 100"));
    assert!(text(101, PhaseMode::Continue).contains("does not hold: 0, 101, 100"));
    assert!(text(95, PhaseMode::Fresh).contains("10 + 0 > 5"));
}

#[test]
fn by_tokens_smaller_steps_advance_less() {
    // 1, 2, 3, 4 micro-batches and so on: 0, 1, 3, 6, 10 before; T = (6 + 16 * 4) / 4 = 17.5.
    let ramp = BatchRamp::new(1, 4, 3).unwrap();
    assert_eq!((0..5).map(|step| ramp.before(step)).collect::<Vec<_>>(), [0, 1, 3, 6, 10]);
    let linear = Schedule::new(
        ScheduleConfig { lr: 2.0, warmup_steps: 1, decay: Decay::Linear { final_ratio: 0.0 } },
        19,
    );
    let linear = linear.unwrap().by_tokens(ramp);
    let left = |quarters: f64| (17.5 - quarters / 4.0) / 16.5;
    check_values(&linear, &[(0, 0.25), (1, 0.75), (2, 1.0), (3, left(6.0)), (4, left(10.0))]);
    check_values(&linear, &[(18, left(66.0)), (19, 0.0)]);
    // Squares 1/16, 9/16, 1, 1.
    assert_eq!(linear.averaging_weight(0), 1.0);
    assert!((linear.averaging_weight(1) - 0.9).abs() < 1e-15);
    assert!((linear.averaging_weight(3) - 1.0 / 2.625).abs() < 1e-15);
}

#[test]
fn by_tokens_without_a_ramp_is_by_steps() {
    for decay in [Decay::Cosine { final_ratio: 0.1 }, Decay::InverseSqrt] {
        let by_steps = schedule(decay, 10, 100);
        let by_tokens = by_steps.by_tokens(BatchRamp::constant(3));
        for step in 0..110 {
            assert_eq!(by_tokens.multiplier(step), by_steps.multiplier(step), "step {step}");
            let error = by_tokens.averaging_weight(step) - by_steps.averaging_weight(step);
            assert!(error.abs() < 1e-15, "step {step}: {error}");
        }
    }
}
