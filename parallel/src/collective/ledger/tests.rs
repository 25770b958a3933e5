//! Calls that a device carries out count when they are over there, in order.

use std::sync::{Arc, Mutex};

use super::{Interval, Ledger};
use crate::collective::call::Request;

/// An interval that is over once a length is set.
#[derive(Debug, Clone, Default)]
struct Settable(Arc<Mutex<Option<f64>>>);

impl Settable {
    fn set(&self, seconds: f64) {
        *self.0.lock().unwrap() = Some(seconds);
    }
}

impl Interval for Settable {
    fn seconds(&self) -> Option<f64> {
        *self.0.lock().unwrap()
    }
}

#[test]
fn calls_on_a_device_are_in_flight_until_they_are_over_there() {
    let ledger = Ledger::default();
    let intervals = [Settable::default(), Settable::default()];
    for (name, interval) in ["first", "second"].into_iter().zip(&intervals) {
        let call = ledger.open(&Request::barrier(name));
        ledger.close_later(call, Box::new(interval.clone()));
    }
    let in_flight = || -> Vec<String> {
        ledger.in_flight().into_iter().map(|in_flight| in_flight.call.name).collect()
    };
    assert_eq!(in_flight(), ["first", "second"]);
    // A device ends its calls in order, so an end behind one that is not over is not looked at.
    intervals[1].set(0.5);
    assert_eq!(in_flight(), ["first", "second"]);
    intervals[0].set(0.25);
    assert_eq!(in_flight(), [""; 0]);
    assert_eq!(ledger.recent()[1].communication_seconds, 0.5);
    assert_eq!(ledger.take_step().communication_seconds, 0.75);
}

#[test]
fn a_devices_wait_counts_as_exposed_when_it_is_over() {
    let ledger = Ledger::default();
    let waited = Settable::default();
    ledger.add_exposed_later(Box::new(waited.clone()));
    assert_eq!(ledger.take_step().exposed_seconds, 0.0);
    waited.set(0.125);
    assert_eq!(ledger.take_step().exposed_seconds, 0.125);
    assert_eq!(ledger.take_step().exposed_seconds, 0.0);
}
