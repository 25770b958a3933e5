//! Requests to stop, polled by every loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

/// The exit code of a run that was asked to stop and has saved what there was to save: try again
/// later (`EX_TEMPFAIL`).
pub const INTERRUPTED: i32 = 75;

/// The exit code of a run that a second signal, whichever, ended before it could save.
pub const ENDED_AT_ONCE: i32 = 130;

/// Whether the process was asked to stop. The first SIGINT, SIGTERM or SIGUSR1 asks; a second one
/// ends the process at once.
#[derive(Clone, Debug)]
pub struct StopRequest {
    asked: Arc<AtomicBool>,
}

impl StopRequest {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the system refuses a handler.
    pub fn install() -> std::io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            // In this order: the shutdown is armed by the flag that the first signal sets.
            flag::register_conditional_shutdown(signal, ENDED_AT_ONCE, asked.clone())?;
            flag::register(signal, asked.clone())?;
        }
        Ok(Self { asked })
    }

    /// A request that no signal makes, for tests and for commands that end by themselves.
    pub fn never() -> Self {
        Self { asked: Arc::new(AtomicBool::new(false)) }
    }

    /// What the signals set.
    pub fn flag(&self) -> &AtomicBool {
        &self.asked
    }

    /// Whether a stop was asked for.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}
