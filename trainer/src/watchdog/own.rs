//! What this rank says of itself: what its training thread does, and whether that is progress.

use std::time::{Duration, Instant};

use grove_parallel::collective::Ledger;

use super::beat::{Beat, Kind, Waiting};
use super::meeting::{Meeting, Place};
use super::process;
use super::pulse::{Doing, Pulse};

/// How much of one processor, over the time since the last look, counts as work: well above what
/// threads take that only wait.
const WORK_PROCESSORS: f64 = 0.25;

/// How many bytes a second, read and written, count as work: well above what this thread reads.
const WORK_BYTES_PER_SECOND: f64 = 1e6;

/// How many times as long as a stall work alone may pass for progress.
const PATIENCE: f64 = 10.0;

/// A training thread that has been idle for so long is looked at more closely.
const CLOSER_LOOK: Duration = Duration::from_secs(2);

/// This rank, seen from its watchdog's thread.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) rank: usize,
    pulse: Pulse,
    pub(super) ledger: Ledger,
    /// The other ranks of this host.
    beside: Vec<(usize, Place)>,
    /// Changes of the pulse, calls made and calls done, when they last grew.
    marks: (u64, u64, u64),
    progress: Instant,
    marked: Instant,
    /// How long work alone may pass for progress.
    patience: Duration,
    /// When work was last looked at, and how much had been done.
    worked: (Instant, f64, u64),
}

impl Own {
    /// Rank `rank`, whose calls `ledger` has, in a run that is stuck after so long.
    pub(super) fn new(
        rank: usize,
        (pulse, ledger): (Pulse, Ledger),
        meeting: &Meeting,
        stall_seconds: f64,
    ) -> Self {
        let own = &meeting.places[rank];
        let beside = meeting.places.iter().enumerate();
        let beside = beside.filter(|&(other, place)| other != rank && place.is_beside(own));
        let beside = beside.map(|(other, place)| (other, place.clone())).collect();
        let (now, (seconds, bytes)) = (Instant::now(), process::work_done());
        let (marks, worked) = ((0, 0, 0), (now, seconds, bytes));
        let patience = Duration::from_secs_f64(PATIENCE * stall_seconds);
        Self { rank, pulse, ledger, beside, marks, progress: now, marked: now, patience, worked }
    }

    /// What the training thread does now.
    pub(super) fn doing(&self) -> Doing {
        self.pulse.read()
    }

    /// Begins to count idle time anew: this process was stopped itself.
    pub(super) fn forgive(&mut self) {
        (self.progress, self.marked) = (Instant::now(), Instant::now());
    }

    /// A look at this rank.
    pub(super) fn beat(&mut self) -> Beat {
        let (doing, calls) = (self.pulse.read(), self.ledger.progress());
        let marks = (doing.changes, calls.made, calls.completed);
        if marks != self.marks {
            (self.marks, self.marked) = (marks, Instant::now());
            self.progress = self.marked;
        } else if self.marked.elapsed() < self.patience && self.has_worked(&doing) {
            self.progress = Instant::now();
        }
        let idle = self.progress.elapsed();
        let closer = idle >= CLOSER_LOOK;
        let waiting = calls.waiting.map(|waiting| {
            let call = &waiting.call;
            let of =
                call.dtype.map_or(String::new(), |dtype| format!(" of {} {dtype}", call.count));
            Waiting {
                sequence: call.sequence,
                call: format!("{} `{}`{of}", call.operation, call.name),
                millis: (waiting.waiting_seconds * 1e3) as u64,
            }
        });
        Beat {
            doing,
            idle_millis: idle.as_millis() as u64,
            waiting,
            disk_threads: if closer { process::disk_threads() } else { 0 },
            witnessed: if closer { self.witness() } else { Vec::new() },
            ..Beat::of(Kind::Beat, self.rank, "")
        }
    }

    /// Whether this process has worked since the last look, where work counts as progress because
    /// there is no rhythm of phases and calls to go by: any work until the first step is done, and
    /// reading and writing in a save.
    fn has_worked(&mut self, doing: &Doing) -> bool {
        let begins = doing.steps_begun < 2;
        if !begins && !["save", "rewind", "blackbox"].contains(&doing.phase.as_str()) {
            return false;
        }
        let (since, seconds_before, bytes_before) = self.worked;
        let elapsed = since.elapsed().as_secs_f64();
        let (seconds, bytes) = process::work_done();
        self.worked = (Instant::now(), seconds, bytes);
        (begins && seconds - seconds_before > WORK_PROCESSORS * elapsed)
            || bytes.saturating_sub(bytes_before) as f64 > WORK_BYTES_PER_SECOND * elapsed
    }

    /// The ranks of this host whose process is stopped, a zombie or gone.
    pub(super) fn witness(&self) -> Vec<(usize, u8)> {
        let state = |place: &Place| match process::state(place.pid) {
            Some((state, started)) if started == place.started_ticks => state,
            _ => 'X',
        };
        let states = self.beside.iter().map(|(rank, place)| (*rank, state(place) as u8));
        states.filter(|(_, state)| b"TtZX".contains(state)).collect()
    }

    /// The other ranks of this host.
    pub(super) fn beside(&self) -> impl Iterator<Item = usize> {
        self.beside.iter().map(|(rank, _)| *rank)
    }

    /// The process of a rank, if it is on this host.
    pub(super) fn process_of(&self, rank: usize) -> Option<u32> {
        self.beside.iter().find(|(other, _)| *other == rank).map(|(_, place)| place.pid)
    }
}
