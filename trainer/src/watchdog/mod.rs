//! A watch over all ranks, beside the run: each rank has a thread that says over a channel of its
//! own what the training thread does. When the run gets on no more, one line says which rank holds
//! it up, what that rank is in, since when and why, and who waits for it; every rank leaves its
//! stacks; and all end with an exit code of their own.
//!
//! Rank 0 judges, and rank 1 judges rank 0 when that is not heard of. The channel is TCP, on
//! loopback where all ranks are on one host. Its frames have a fixed length, say what a rank does
//! and ask for nothing; who comes must know a token that ranks have told each other by MPI.
//!
//! What is progress: a change of phase, unit, micro-batch or step, and a call that is made or done.
//! Before the first step is done it is also work, time of a processor or bytes read and written, and
//! in a save bytes; but for ten times as long as a stall at most.

mod backtrace;
mod beat;
mod channel;
mod judge;
mod meeting;
mod own;
mod process;
mod pulse;
mod stacks;
mod table;
#[cfg(test)]
mod tests;
mod watch;

use std::io::{Write, stderr};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use grove_parallel::Collective;
use tokio::sync::mpsc::{Sender, channel};

pub use pulse::{Doing, Pulse};

use crate::config::WatchdogPlan;
use own::Own;
use watch::Watch;

/// The exit code of a run that the watchdog has ended.
pub const STALLED: i32 = 76;

/// How long the end of this rank waits for its last word to be on its way.
const LAST_WORD_TIMEOUT: Duration = Duration::from_millis(500);

/// This rank's part of the watch. Dropping it says that the rank has come to its end.
#[derive(Debug)]
pub struct Watchdog {
    last_words: Option<Sender<LastWord>>,
    done: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// How a rank ends.
#[derive(Debug)]
enum LastWord {
    Bye,
    Raised(String),
}

impl Watchdog {
    /// Starts to watch, unless some rank's plan is to do without: then there is nobody to watch,
    /// and `None`. `pulse` is where the training thread says what it does.
    ///
    /// # Errors
    /// If ranks cannot tell each other where they are.
    ///
    /// # Collectives
    /// Three all-gathers.
    pub fn start(
        plan: &WatchdogPlan,
        run_folder: &Path,
        collective: &dyn Collective,
        host: &str,
        pulse: &Pulse,
    ) -> Result<Option<Self>, grove_parallel::Error> {
        let Some(meeting) = meeting::meet(plan, collective, host)? else { return Ok(None) };
        let (last_words, words) = channel(1);
        let (finished, done) = mpsc::sync_channel(1);
        let seen = (pulse.clone(), collective.ledger().clone());
        let own = Own::new(collective.rank(), seen, &meeting, plan.stall_seconds);
        let watch = Watch::new(plan, run_folder, own, meeting);
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(watch.run(words)),
                Err(error) => say(&format!("no watchdog: {error}")),
            }
            // Whoever waits may have given up.
            let _ = finished.send(());
        };
        let thread = std::thread::Builder::new().name("grove-watchdog".to_owned()).spawn(run);
        match thread {
            Ok(thread) => {
                Ok(Some(Self { last_words: Some(last_words), done, thread: Some(thread) }))
            }
            Err(error) => {
                say(&format!("no watchdog on rank {}: {error}", collective.rank()));
                Ok(None)
            }
        }
    }

    /// Tells the others that this rank has failed, and why, so that they need not wonder.
    pub fn tell_failure(mut self, reason: &str) {
        self.end(LastWord::Raised(reason.to_owned()));
    }

    fn end(&mut self, word: LastWord) {
        let Some(sender) = self.last_words.take() else { return };
        // A watch that has ended by itself has nothing left to say.
        if sender.blocking_send(word).is_ok()
            && self.done.recv_timeout(LAST_WORD_TIMEOUT).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A panic of the thread has been printed where it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.end(LastWord::Bye);
    }
}

/// The file that takes the stacks of all ranks at a stall in a step.
fn stacks_file(run_folder: &Path, step: u64) -> PathBuf {
    run_folder.join("watchdog").join(format!("stall-step-{step:08}.txt"))
}

/// One line on standard error, whole.
fn say(line: &str) {
    // Where standard error is gone there is nobody left to tell.
    let _ = stderr().write_all(format!("grove: {line}\n").as_bytes());
}
