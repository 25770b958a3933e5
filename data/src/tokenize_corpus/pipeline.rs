//! One thread that reads, several that encode, and the caller that takes the results in order.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use super::DocumentOptions;
use super::reader::{Reader, Task};
use super::worker::{Encoded, Worker};
use crate::dataset::Position;
use crate::error::Result;
use crate::input::InputFile;
use crate::tokenize::{Chunking, Tokenizer};

/// How much is done at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Threads that encode.
    pub(crate) num_threads: usize,
    /// Bytes that a task holds, or more where records are longer.
    pub(crate) block_bytes: usize,
    /// Whether plain text is cut at line ends even where the tokenizer would take any cut.
    pub(crate) at_line_ends: bool,
}

impl Sizes {
    /// The sizes to use with this many threads, 0 for one a core.
    pub(crate) fn new(num_threads: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let num_threads = if num_threads == 0 { cores() } else { num_threads };
        Self { num_threads, block_bytes: 1 << 20, at_line_ends: false }
    }
}

/// Everything that turns inputs into ids.
pub(crate) struct Pipeline<'a> {
    pub(crate) inputs: &'a [InputFile],
    pub(crate) documents: &'a DocumentOptions,
    pub(crate) tokenizer: &'a Tokenizer,
    /// Whether the hash of a document must be known before its first ids are written.
    pub(crate) needs_hash_first: bool,
    /// A folder for temporary files.
    pub(crate) scratch: &'a Path,
    pub(crate) sizes: Sizes,
}

impl Pipeline<'_> {
    /// Encodes everything from `start` on and gives it to `sink` in order.
    ///
    /// # Errors
    /// The first error in the order of the inputs, whichever thread met it, or that of `sink`.
    pub(crate) fn run(
        &self,
        start: Position,
        read_bytes: &AtomicU64,
        sink: &mut dyn FnMut(Encoded) -> Result<()>,
    ) -> Result<()> {
        // Tasks that are read but not yet taken by the sink: enough that no thread waits while
        // the sink is busy, few enough to bound memory.
        let num_ahead = 3 * self.sizes.num_threads + 2;
        let (tickets, spent_tickets) = sync_channel::<()>(num_ahead);
        let (tasks, waiting) = channel::<Task>();
        let (results, arrived) = channel::<Encoded>();
        let waiting = Mutex::new(waiting);
        std::thread::scope(|scope| {
            let reader_results = results.clone();
            scope.spawn(move || {
                let mut reader = Reader::new(self, start, read_bytes);
                let outcome = reader.for_each_task(&mut |task| {
                    // Either fails when the caller gave up.
                    tickets.send(()).is_ok() && tasks.send(task).is_ok()
                });
                if let Err(cause) = outcome {
                    let _ = reader_results.send(Encoded::failed(reader.num_tasks(), cause));
                }
            });
            for _ in 0..self.sizes.num_threads {
                let (waiting, results) = (&waiting, results.clone());
                scope.spawn(move || self.work(waiting, &results));
            }
            // The channel closes when the last thread is done.
            drop(results);
            take_in_order(arrived, spent_tickets, sink)
        })
    }

    fn work(&self, waiting: &Mutex<Receiver<Task>>, results: &Sender<Encoded>) {
        let mut worker = Worker::new(self.tokenizer, self.documents, self.inputs);
        loop {
            let task = waiting.lock().expect("no thread panics while it holds the lock").recv();
            let Ok(task) = task else { return };
            if results.send(worker.encode(task)).is_err() {
                return;
            }
        }
    }

    /// Where plain text may be cut.
    pub(crate) fn chunking(&self) -> Chunking {
        match self.tokenizer.chunking() {
            Chunking::AnyByte if self.sizes.at_line_ends => Chunking::LineEnds,
            chunking => chunking,
        }
    }
}

/// Hands results on in the order of their numbers, which count from 0 without gaps. The channels
/// are closed on return, which is what ends the other threads after an error.
fn take_in_order(
    arrived: Receiver<Encoded>,
    spent_tickets: Receiver<()>,
    sink: &mut dyn FnMut(Encoded) -> Result<()>,
) -> Result<()> {
    let mut early = BTreeMap::new();
    let mut next = 0_u64;
    for encoded in arrived {
        early.insert(encoded.number, encoded);
        while let Some(encoded) = early.remove(&next) {
            if let Some(failure) = encoded.failure {
                return Err(failure);
            }
            sink(encoded)?;
            next += 1;
            // The failure of the reader, the last of all, has no ticket.
            let _ = spent_tickets.try_recv();
        }
    }
    Ok(())
}
