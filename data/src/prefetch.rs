//! Assembles a rank's next batches on a thread of its own, while the current one is computed.

#[cfg(test)]
mod tests;

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::loader::Loader;

/// Gives micro-batches in order, some of them assembled ahead.
///
/// The content is that of [`Loader::micro_batch`], so prefetching changes the time and nothing
/// else. Dropping it ends the thread and waits for it, at most for the batch it is at.
#[derive(Debug)]
pub struct Prefetcher {
    /// `None` only while dropping: closing it is what ends the thread.
    batches: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetcher {
    /// Starts at the first of `indices` of step `first_step`; after the last index comes the
    /// first of the next step, without end. `depth` batches wait ready and one more is at work,
    /// so `depth + 1` batches of `B * (S + 1) * 4` bytes are held.
    ///
    /// # Errors
    /// [`Error::NothingToPrefetch`] if `indices` is empty, [`Error::NoSuchBatch`] if one of them
    /// is not below `micro_batches_per_step`, [`Error::Zero`] if `depth` is 0, [`Error::Io`] if
    /// no thread can be started.
    pub fn new(loader: Loader, first_step: u64, indices: Vec<u64>, depth: usize) -> Result<Self> {
        if indices.is_empty() {
            return Err(Error::NothingToPrefetch);
        }
        indices.iter().try_for_each(|&index| loader.check_index(index))?;
        let of_step = move |step| indices.clone().into_iter().map(move |index| (step, index));
        Self::over(loader, (first_step..).flat_map(of_step), depth)
    }

    /// Gives the micro-batches at `places`, pairs of step and index, in this order: for steps of
    /// different numbers of micro-batches.
    ///
    /// # Errors
    /// [`Error::Zero`] if `depth` is 0, [`Error::Io`] if no thread can be started.
    pub fn over(
        loader: Loader,
        places: impl Iterator<Item = (u64, u64)> + Send + 'static,
        depth: usize,
    ) -> Result<Self> {
        if depth == 0 {
            return Err(Error::Zero { key: "depth" });
        }
        let (sender, batches) = sync_channel(depth);
        let path = loader.path().to_owned();
        let assemble = move || {
            for (step, index) in places {
                let batch = loader.micro_batch(step, index);
                let is_last = batch.is_err();
                // Sending fails when the prefetcher is dropped.
                if sender.send(batch).is_err() || is_last {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("grove-prefetch".to_owned())
            .spawn(assemble)
            .map_err(Error::io("start a thread to read", &path))?;
        Ok(Self { batches: Some(batches), thread: Some(thread) })
    }

    /// The next micro-batch, waiting for it if need be.
    ///
    /// # Errors
    /// Those of [`Loader::micro_batch`], once, at the batch where they arose; after that
    /// [`Error::PrefetchEnded`].
    pub fn next(&self) -> Result<Batch> {
        self.receiver().recv().unwrap_or(Err(Error::PrefetchEnded))
    }

    /// The next micro-batch, if it comes within `wait`.
    ///
    /// # Errors
    /// Those of [`Self::next`].
    pub fn next_within(&self, wait: Duration) -> Result<Option<Batch>> {
        match self.receiver().recv_timeout(wait) {
            Ok(batch) => batch.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Error::PrefetchEnded),
        }
    }

    fn receiver(&self) -> &Receiver<Result<Batch>> {
        self.batches.as_ref().expect("it is taken in drop only")
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already reported, as PrefetchEnded.
            let _ = thread.join();
        }
    }
}
