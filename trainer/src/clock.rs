//! Where a step's time goes: one phase is running at any moment.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::metrics::Phase;

/// Adds up wall seconds by phase. Times are the host's: work queued on a GPU is counted where the
/// host waits for it.
#[derive(Debug)]
pub struct Clock {
    seconds: BTreeMap<Phase, f64>,
    running: Option<(Phase, Instant)>,
}

impl Clock {
    /// A stopped clock.
    pub fn new() -> Self {
        Self { seconds: BTreeMap::new(), running: None }
    }

    /// Ends the running phase and begins `phase`.
    pub fn enter(&mut self, phase: Phase) {
        self.stop();
        self.running = Some((phase, Instant::now()));
    }

    /// Ends the running phase, if any.
    pub fn stop(&mut self) {
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

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
