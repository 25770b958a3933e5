//! The promise of a call's result: shared by who makes the call and who carries it out.

use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Instant,
};

use super::ledger::Ledger;
use crate::error::Result;

/// A place for one outcome, with someone waiting for it.
#[derive(Debug, Default)]
pub(super) struct Completion {
    outcome: Mutex<Option<Result<()>>>,
    done: Condvar,
}

impl Completion {
    /// Stores the outcome and wakes the one that waits.
    pub(super) fn finish(&self, outcome: Result<()>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.done.notify_all();
    }

    fn wait(&self) -> Result<()> {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = outcome.as_ref() {
                return outcome.clone();
            }
            outcome = self.done.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A started call. Its tensors hold the result once [`Handle::wait`] returned.
///
/// Dropping a handle waits too, so memory never changes behind the caller's back; an error is
/// then not lost either, as every later call returns it.
#[must_use = "wait for it, or the call is not asynchronous"]
pub struct Handle {
    completion: Option<Arc<Completion>>,
    ledger: Ledger,
}

impl Handle {
    /// A handle of a call that others carry out.
    pub(super) fn pending(completion: Arc<Completion>, ledger: Ledger) -> Self {
        Self { completion: Some(completion), ledger }
    }

    /// A handle of a call that is done.
    pub(super) fn ready(ledger: Ledger) -> Self {
        Self { completion: None, ledger }
    }

    /// Waits until the call is done, and counts the time as exposed communication.
    ///
    /// # Errors
    /// What went wrong between the ranks: [`Error::CallsDiffer`](crate::Error::CallsDiffer),
    /// [`Error::PeerLeft`](crate::Error::PeerLeft), [`Error::Mpi`](crate::Error::Mpi) or
    /// [`Error::Tensor`](crate::Error::Tensor).
    pub fn wait(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        let Some(completion) = self.completion.take() else { return Ok(()) };
        let start = Instant::now();
        let outcome = completion.wait();
        self.ledger.add_exposed(start.elapsed().as_secs_f64());
        outcome
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The implementations repeat a failure in every later call, so it is not lost here.
        let _ = self.finish();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("pending", &self.completion.is_some()).finish()
    }
}
