//! Requests to stop, polled by every loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

/// The exit code of a run that was asked to stop and has saved what there was to save: try again
/// later (`EX_TEMPFAIL`).
pub const INTERRUPTED: i32 = 75;

/// The exit code of a run that a SIGINT ended before it could save, after it was asked to stop.
pub const ENDED_AT_ONCE: i32 = 130;

/// Whether the process was asked to stop. The first SIGINT, SIGTERM or SIGUSR1 asks. A SIGINT after
/// it ends the process at once: somebody sits there who will not wait. Further SIGTERM and SIGUSR1
/// change nothing, since batch systems and launchers send them again and again.
#[derive(Clone, Debug)]
pub struct StopRequest {
    asked: Arc<AtomicBool>,
    /// When it was first seen.
    seen: Arc<OnceLock<Instant>>,
}

impl StopRequest {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the system refuses a handler.
    pub fn install() -> std::io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        // In this order: the shutdown is armed by the flag that the first signal sets.
        flag::register_conditional_shutdown(SIGINT, ENDED_AT_ONCE, asked.clone())?;
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            flag::register(signal, asked.clone())?;
        }
        Ok(Self { asked, seen: Arc::default() })
    }

    /// A request that no signal makes, for tests and for commands that end by themselves.
    pub fn never() -> Self {
        Self { asked: Arc::default(), seen: Arc::default() }
    }

    /// What the signals set.
    pub fn flag(&self) -> &AtomicBool {
        &self.asked
    }

    /// Whether a stop was asked for.
    pub fn is_asked(&self) -> bool {
        let asked = self.asked.load(Ordering::Relaxed);
        if asked {
            self.seen.get_or_init(Instant::now);
        }
        asked
    }

    /// Seconds since [`Self::is_asked`] was first true; 0 if it never was.
    pub fn seconds_since_seen(&self) -> f64 {
        self.seen.get().map_or(0.0, |seen| seen.elapsed().as_secs_f64())
    }
}
