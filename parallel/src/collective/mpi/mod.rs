//! Ranks as processes under `mpirun` or `srun`: a thread of its own drives MPI, so that
//! communication runs while the caller computes.
//!
//! That thread initializes MPI, is the only one to use the communicator, carries out the queued
//! calls one after another, and finalizes MPI when the collective is dropped. It waits by
//! testing and yielding, then sleeping, so that a rank that waits for a late peer leaves its
//! core to those who compute.

mod agreement;
mod element;
mod exchange;
mod region;
mod staging;
mod wire;

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Instant,
};

use self::{exchange::Exchange, wire::Wire};
use super::{
    Collective, Handle, Ledger,
    call::{Buffers, Call, Request},
    group,
    handle::Completion,
};
use crate::error::{Error, Result};

/// One rank among MPI processes: all of `MPI_COMM_WORLD`, or a group of them.
///
/// # Reduction order
/// Each element is reduced by one rank, which takes the contributions in rank order (or as the
/// tree of [`Reduction::TreeSum`](super::Reduction::TreeSum)) and gives the result to all. So
/// all ranks have the same bits, from run to run, whatever the message sizes and arrival times.
///
/// # Ending
/// Dropping it and its groups waits for the queued calls and finalizes MPI, which waits for the
/// peers to do the same. A rank that stops for a reason of its own must therefore
/// [`Collective::abort`]; one that panics does so by itself. After a failed call MPI is not
/// finalized, and a non-zero exit status makes the launcher end the peers.
#[derive(Debug)]
pub struct MpiCollective {
    rank: usize,
    degree: usize,
    /// The place of its exchange on the communication thread.
    channel: usize,
    communication: Arc<Communication>,
}

/// The communication thread as a collective and its groups see it. Ends it when dropped.
#[derive(Debug)]
struct Communication {
    ledger: Ledger,
    /// `None` once the queue is closed for good. The lock keeps the order of sequence numbers
    /// and the order in the queue the same.
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Option<JoinHandle<()>>,
    failure: Arc<OnceLock<Error>>,
}

/// Something for the communication thread to do.
enum Job {
    /// A call of the collective with that channel.
    Call { channel: usize, call: Call, buffers: Buffers, completion: Arc<Completion> },
    /// A new channel for some ranks of the one it has; answered with its number.
    Split { channel: usize, members: Vec<usize>, answer: mpsc::Sender<Result<usize>> },
}

impl MpiCollective {
    /// Initializes MPI in a new thread. With `check` on any rank, ranks first compare what they are calling
    /// before each call, and get [`Error::CallsDiffer`] instead of waiting forever or mixing
    /// data if they are not in the same one; it costs a round of small messages a call.
    ///
    /// # Collectives
    /// Every process of `MPI_COMM_WORLD` must connect.
    ///
    /// # Errors
    /// [`Error::MpiInitialized`] the second time in a process; [`Error::Mpi`]; [`Error::Thread`]
    /// if the thread cannot be started.
    pub fn connect(check: bool) -> Result<Self> {
        let (queue, jobs) = mpsc::channel();
        let (report, started) = mpsc::channel();
        let (ledger, failure) = (Ledger::default(), Arc::new(OnceLock::new()));
        let (thread_ledger, thread_failure) = (ledger.clone(), Arc::clone(&failure));
        let communicate = move || match Wire::open() {
            Err(error) => {
                // The receiver waits below, so it is there.
                let _ = report.send(Err(error));
            }
            // The first words of all ranks, which none of them can be in another call for.
            Ok(wire) => match wire.all_gather_words(vec![u64::from(check)]) {
                Err(error) => {
                    let _ = report.send(Err(error));
                }
                Ok(checks) => {
                    let _ = report.send(Ok((wire.rank(), wire.degree())));
                    let exchange = Exchange::new(wire, checks.contains(&1));
                    carry_out(exchange, &jobs, &thread_ledger, &thread_failure);
                }
            },
        };
        let stopped = |reason: String| Error::Thread { reason };
        let thread = thread::Builder::new()
            .name("grove-mpi".to_owned())
            .spawn(communicate)
            .map_err(|error| stopped(error.to_string()))?;
        let (rank, degree) = started
            .recv()
            .map_err(|_| stopped("it ended while it initialized MPI".to_owned()))??;
        let (queue, thread) = (Mutex::new(Some(queue)), Some(thread));
        let communication = Arc::new(Communication { ledger, queue, thread, failure });
        Ok(Self { rank, degree, channel: 0, communication })
    }
}

/// Carries out jobs until the queue closes, then finalizes MPI unless one failed.
fn carry_out(
    exchange: Exchange,
    jobs: &mpsc::Receiver<Job>,
    ledger: &Ledger,
    failure: &OnceLock<Error>,
) {
    let mut exchanges = vec![exchange];
    for job in jobs {
        let failed = failure.get().cloned().map_or(Ok(()), Err);
        match job {
            Job::Call { channel, call, buffers, completion } => {
                let start = Instant::now();
                let exchange = &mut exchanges[channel];
                let run = |host: &Buffers| exchange.run(&call, host);
                let outcome =
                    failed.and_then(|()| staging::with_host_buffers(&call, &buffers, run));
                if let Err(error) = &outcome {
                    failure.get_or_init(|| error.clone());
                    // MPI may still be reading and writing this memory, so it is never given back.
                    std::mem::forget(buffers);
                }
                ledger.close(&call, start.elapsed().as_secs_f64());
                completion.finish(outcome);
            }
            Job::Split { channel, members, answer } => {
                let outcome = failed.and_then(|()| exchanges[channel].split(&members));
                if let Err(error) = &outcome {
                    failure.get_or_init(|| error.clone());
                }
                let channel = exchanges.len();
                // Whoever asked waits for the answer, so it is there.
                let _ = answer.send(outcome.map(|exchange| {
                    exchanges.push(exchange);
                    channel
                }));
            }
        }
    }
    if failure.get().is_some() {
        // Finalizing would wait for peers that are stuck in the failed call.
        std::mem::forget(exchanges);
    }
}

impl Communication {
    /// Puts the job that `make` makes into the queue, unless an earlier one failed.
    fn send(&self, make: impl FnOnce() -> Job) -> Result<()> {
        if let Some(error) = self.failure.get() {
            return Err(error.clone());
        }
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref().ok_or_else(gone)?.send(make()).map_err(|_| gone())
    }
}

fn gone() -> Error {
    Error::Thread { reason: "it ended before the collective".to_owned() }
}

impl Collective for MpiCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn degree(&self) -> usize {
        self.degree
    }

    fn ledger(&self) -> &Ledger {
        &self.communication.ledger
    }

    fn submit(&self, request: Request) -> Result<Handle> {
        let Self { channel, communication, .. } = self;
        let completion = Arc::new(Completion::default());
        communication.send(|| Job::Call {
            channel: *channel,
            call: communication.ledger.open(&request),
            buffers: request.buffers,
            completion: Arc::clone(&completion),
        })?;
        Ok(Handle::pending(completion, communication.ledger.clone()))
    }

    fn abort(&self, code: i32) {
        wire::abort(code);
    }

    fn group(&self, ranks: &[usize], name: &str) -> Result<Box<dyn Collective>> {
        group::agree(self, ranks, name)?;
        let (answer, answered) = mpsc::channel();
        let (parent, members) = (self.channel, ranks.to_vec());
        self.communication.send(|| Job::Split { channel: parent, members, answer })?;
        let channel = answered.recv().map_err(|_| gone())??;
        let rank = ranks.iter().position(|&rank| rank == self.rank).expect("checked above");
        let communication = Arc::clone(&self.communication);
        Ok(Box::new(Self { rank, degree: ranks.len(), channel, communication }))
    }
}

impl Drop for MpiCollective {
    fn drop(&mut self) {
        // Not in a group: those go first, and who owns the whole may still say which rank it is.
        if self.channel == 0 && thread::panicking() {
            // The panic hook has said why; peers must not wait for this rank.
            wire::abort(1);
        }
    }
}

impl Drop for Communication {
    fn drop(&mut self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed, and there is nothing left to undo.
            let _ = thread.join();
        }
    }
}
