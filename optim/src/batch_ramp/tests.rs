//! Hand-derived values.

use super::BatchRamp;

#[test]
fn the_ramp_is_the_worked_one() {
    let ramp = BatchRamp::new(2, 8, 4).unwrap();
    let counts: Vec<u64> = (0..6).map(|step| ramp.count(step)).collect();
    assert_eq!(counts, [2, 3, 5, 6, 8, 8]);
    let before: Vec<u64> = (0..7).map(|step| ramp.before(step)).collect();
    assert_eq!(before, [0, 2, 5, 10, 16, 24, 32]);
    assert_eq!((ramp.least(), ramp.full()), (2, 8));
}

#[test]
fn without_a_ramp_every_step_is_full() {
    let ramp = BatchRamp::constant(7);
    assert_eq!((ramp.count(0), ramp.count(9), ramp.before(9), ramp.least()), (7, 7, 63, 7));
}

#[test]
fn a_ramp_that_goes_down_or_starts_at_nothing_is_refused() {
    for first in [0, 9] {
        let said = BatchRamp::new(first, 8, 4).unwrap_err().to_string();
        let start = format!("batch.ramp_from = {first} is out of range: expected 1 <= ramp_from");
        assert!(said.starts_with(&start), "{said}");
    }
}
