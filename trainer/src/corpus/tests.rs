//! Steps of a run and steps of the data order, under ramps.

use grove_optim::BatchRamp;

use super::{place, step_of};

#[test]
fn places_follow_each_other_and_are_found_again() {
    let ramp = |first, full, steps| BatchRamp::new(first, full, steps).expect("a ramp");
    for ramp in [BatchRamp::constant(4), ramp(1, 4, 10), ramp(3, 8, 5), ramp(1, 7, 100)] {
        let mut number = 0;
        for step in 0..150 {
            for index in 0..ramp.count(step) {
                let found = place(&ramp, step, index);
                assert_eq!(found, (number / ramp.full(), number % ramp.full()), "{ramp:?}");
                assert_eq!(step_of(&ramp, found), (step, index), "{ramp:?}");
                number += 1;
            }
        }
    }
}
