//! Where a step's time goes: one phase is running at any moment, and a beacon shows which.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::beacon::Beacon;
use crate::metrics::{Phase, Trace, UnitSeconds};
use crate::watchdog::Pulse;

/// Adds up wall seconds by phase. Times are the host's: work queued on a GPU is counted as
/// [`Phase::Device`], where the host waits for it.
#[derive(Debug, Default)]
pub struct Clock {
    seconds: BTreeMap<Phase, f64>,
    running: Option<(Phase, Instant)>,
    beacon: Option<Beacon>,
    pulse: Pulse,
    activation_bytes: u64,
    trace: Option<Trace>,
    readbacks: u64,
}

impl Clock {
    /// A stopped clock without a beacon.
    pub fn new() -> Self {
        Self::default()
    }

    /// A stopped clock that shows each phase to other threads by `pulse` and on `beacon`, if there is
    /// one.
    pub fn showing(pulse: Pulse, beacon: Option<Beacon>) -> Self {
        Self { beacon, pulse, ..Self::default() }
    }

    /// Ends the running phase and begins `phase`.
    pub fn enter(&mut self, phase: Phase) {
        self.enter_unit(phase, "");
    }

    /// Ends the running phase and begins `phase` in a unit; the next call in the same phase only
    /// names the next unit.
    pub fn enter_unit(&mut self, phase: Phase, unit: &str) {
        self.pulse.show(phase.name(), unit);
        if let Some(beacon) = &mut self.beacon {
            beacon.show(phase.name(), unit);
        }
        if let Some(trace) = &mut self.trace {
            trace.enter(phase, unit);
        }
        if self.running.is_some_and(|(running, _)| running == phase) {
            return;
        }
        self.stop();
        self.running = Some((phase, Instant::now()));
    }

    /// Shows what is done between steps, which no phase counts.
    pub fn show(&mut self, what: &str) {
        self.stop();
        self.pulse.show(what, "");
        if let Some(beacon) = &mut self.beacon {
            beacon.show(what, "");
        }
    }

    /// Says which round of the step's micro-batches follows, from 0.
    pub fn begin_round(&mut self, round: u64) {
        self.pulse.begin_round(round);
    }

    /// Says which step follows.
    pub fn begin_step(&mut self, step: u64) {
        self.pulse.begin_step(step);
        if let Some(beacon) = &mut self.beacon {
            beacon.begin_step(step);
        }
    }

    /// Notes how many bytes of activations wait for their backward.
    pub fn note_activations(&mut self, bytes: impl FnOnce() -> u64) {
        self.activation_bytes = self.activation_bytes.max(bytes());
    }

    /// The most bytes of activations that waited for their backward since the clock was made.
    pub fn activation_bytes(&self) -> u64 {
        self.activation_bytes
    }

    /// Notes that numbers of the device were waited for.
    pub fn note_readback(&mut self) {
        self.readbacks += 1;
    }

    /// How often numbers of the device were waited for since the last call.
    pub fn take_readbacks(&mut self) -> u64 {
        std::mem::take(&mut self.readbacks)
    }

    /// Traces phases and units from here on, if it does not already.
    pub fn begin_trace(&mut self) {
        self.trace.get_or_insert_with(Trace::begin);
    }

    /// Seconds by unit and phase since the last call, where there is a trace.
    pub fn take_unit_seconds(&mut self) -> UnitSeconds {
        self.stop();
        self.trace.as_mut().map(Trace::take_unit_seconds).unwrap_or_default()
    }

    /// Ends the trace, if there is one.
    pub fn take_trace(&mut self) -> Option<Trace> {
        self.stop();
        self.trace.take()
    }

    /// Ends the running phase, if any.
    pub fn stop(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.leave();
        }
        if let Some((phase, since)) = self.running.take() {
            *self.seconds.entry(phase).or_default() += since.elapsed().as_secs_f64();
        }
    }

    /// Stops, hands out the seconds by phase and begins anew.
    pub fn take(&mut self) -> BTreeMap<Phase, f64> {
        self.stop();
        std::mem::take(&mut self.seconds)
    }
}
