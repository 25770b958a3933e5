//! The promise of a call's result: shared by who makes the call and who carries it out.

use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Instant,
};

use super::{ledger::Ledger, nccl::Started};
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

/// Who carries out a call that is not done.
enum Pending {
    /// A thread, which will finish the completion.
    Thread(Arc<Completion>),
    /// A GPU, whose compute stream is to wait for it.
    Device(Box<Started>),
}

/// A started call. Its tensors hold the result once [`Handle::wait`] returned; those on a GPU
/// hold it for whatever is queued there after that, as the host does not wait.
///
/// Dropping a handle waits too, so memory never changes behind the caller's back; an error is
/// then not lost either, as every later call returns it.
#[must_use = "wait for it, or the call is not asynchronous"]
pub struct Handle {
    pending: Option<Pending>,
    ledger: Ledger,
}

impl Handle {
    /// A handle of a call that others carry out.
    pub(super) fn pending(completion: Arc<Completion>, ledger: Ledger) -> Self {
        Self { pending: Some(Pending::Thread(completion)), ledger }
    }

    /// A handle of a call on a GPU's side stream.
    pub(super) fn on_device(started: Started, ledger: Ledger) -> Self {
        Self { pending: Some(Pending::Device(Box::new(started))), ledger }
    }

    /// A handle of a call that is done.
    pub(super) fn ready(ledger: Ledger) -> Self {
        Self { pending: None, ledger }
    }

    /// Waits until the call is done, and counts the time as exposed communication. For tensors
    /// on a GPU its compute stream (the default stream) waits, and the host goes on.
    ///
    /// # Errors
    /// What went wrong between the ranks: [`Error::CallsDiffer`](crate::Error::CallsDiffer),
    /// [`Error::PeerLeft`](crate::Error::PeerLeft), [`Error::Mpi`](crate::Error::Mpi),
    /// [`Error::Nccl`](crate::Error::Nccl), [`Error::Cuda`](crate::Error::Cuda) or
    /// [`Error::Tensor`](crate::Error::Tensor).
    pub fn wait(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        match self.pending.take() {
            None => Ok(()),
            Some(Pending::Thread(completion)) => {
                let start = Instant::now();
                self.ledger.begin_wait();
                let outcome = completion.wait();
                self.ledger.add_exposed(start.elapsed().as_secs_f64());
                outcome
            }
            Some(Pending::Device(started)) => started.wait(&self.ledger),
        }
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
        f.debug_struct("Handle").field("pending", &self.pending.is_some()).finish()
    }
}
