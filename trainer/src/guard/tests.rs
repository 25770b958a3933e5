//! The guards' arithmetic on values computed by hand.

use super::{Exclusions, History, Rules, Tripped, spread};
use crate::config::{GuardPlan, Policy};
use crate::metrics::Trip;

/// Eight past losses: median 4.5, absolute deviations 3.5, 2.5, 1.5, 0.5 twice each, of which the
/// median is 2.
const PAST: [f64; 8] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];

/// Rounding of a division.
const ROUNDING: f64 = 1e-12;

fn rules(spike_zscore: f64) -> Rules {
    Rules::new(&GuardPlan {
        non_finite: Policy::Rewind,
        spike_zscore,
        spike: Some(Policy::Skip),
        spike_window: Some(8),
        max_trips: Some(2),
        ..GuardPlan::default()
    })
}

fn history(values: &[f64]) -> History {
    let mut history = History::default();
    for (step, &value) in (1..).zip(values) {
        history.note_update((step, 8), value, 1.0);
    }
    history
}

#[test]
fn a_zscore_is_that_computed_by_hand() {
    // (13.3956 - 4.5) / (1.4826 * 2) = 3
    assert!((spread::zscore(&PAST, 13.3956) - 3.0).abs() < ROUNDING);
    assert!(spread::zscore(&PAST, 1.0) < 0.0, "what falls is no spike");
    // Equal values: the floor of a thousandth of the median.
    assert!((spread::zscore(&[2.0; 8], 2.01) - 5.0).abs() < 1e-9);
}

#[test]
fn an_outlier_in_the_window_hides_no_other() {
    let mut past = PAST;
    past[7] = 1e6;
    assert!(spread::zscore(&past, 1e6) > 1e5);
}

#[test]
fn what_is_not_finite_trips_at_once_and_a_spike_only_over_a_full_window() {
    let rules = rules(3.0);
    for (loss, norm) in [(f64::NAN, 1.0), (1.0, f64::INFINITY)] {
        let expected = Tripped { trip: Trip::NonFinite, policy: Policy::Rewind };
        assert_eq!(rules.judge(&History::default(), loss, norm), Some(expected));
    }
    assert_eq!(rules.judge(&history(&PAST[..7]), 1e9, 1.0), None);
    let spike = |trip| Some(Tripped { trip, policy: Policy::Skip });
    assert_eq!(rules.judge(&history(&PAST), 13.5, 1.0), spike(Trip::LossSpike));
    assert_eq!(rules.judge(&history(&PAST), 13.3, 1.0), None);
    assert_eq!(rules.judge(&history(&PAST), 4.0, 1.1), spike(Trip::NormSpike));
}

#[test]
fn only_steps_in_a_row_count_and_those_done_again_do_not_end_it() {
    let mut history = history(&PAST);
    assert_eq!([history.note_trip(9), history.note_trip(10)], [1, 2]);
    history.note_update((8, 8), 1.0, 1.0);
    assert_eq!(history.note_trip(10), 3, "step 8 was done again after a rewind");
    assert!(rules(3.0).is_exhausted(3) && !rules(3.0).is_exhausted(2));
    history.note_update((10, 8), 1.0, 1.0);
    assert_eq!(history.note_trip(11), 1);
}

#[test]
fn excluded_data_is_jumped_over() {
    let exclusions = Exclusions::new([3, 4, 7]);
    let mapped: Vec<u64> = (0..7).map(|step| exclusions.data_step(step)).collect();
    assert_eq!(mapped, [0, 1, 2, 5, 6, 8, 9]);
    for step in 0..7 {
        let from: Vec<u64> = exclusions.from_step(step as u64).take(7 - step).collect();
        assert_eq!(from, mapped[step..]);
    }
}

#[test]
fn data_that_was_trained_on_cannot_be_excluded() {
    let mut exclusions = Exclusions::new([3]);
    // Step 5 sees data step 6: 0 to 5 without 3 have been trained on.
    assert_eq!(exclusions.extend([3, 6, 9], 5), Ok(()));
    assert_eq!(exclusions.extend([2], 5), Err(2));
}

#[test]
fn a_history_comes_back_bit_for_bit() {
    let mut history = history(&[0.1, 1.0 / 3.0, 2.5e-308]);
    history.excluded.insert(17);
    history.skipped_steps = 2;
    history.note_trip(4);
    let text = serde_json::to_string(&history.to_record()).expect("JSON");
    let record = serde_json::from_str(&text).expect("a record");
    assert_eq!(History::from_record(&record), history);
    // A checkpoint from before there were guards.
    assert_eq!(serde_json::from_str::<super::GuardRecord>("{}").ok(), Some(Default::default()));
}
