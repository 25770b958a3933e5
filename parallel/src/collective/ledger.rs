//! The account of all calls: totals for the step's record, and what is under way for whoever
//! watches for a rank that hangs.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::call::{Call, Request};

/// How many completed calls are kept.
const NUM_RECENT: usize = 64;

/// Calls and bytes of one kind of operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperationTotals {
    /// Calls made.
    pub calls: u64,
    /// Elements of the larger buffer, summed over the calls.
    pub elements: u64,
    /// Bytes that this rank sent, by the algorithm that sends least: see
    /// [`OperationTotals::bytes`] for the share.
    pub sent_bytes: u64,
    /// Bytes of the larger buffer, summed over the calls. How much of it crosses a wire depends
    /// on the degree `N`: `(N-1)/N` for gather and reduce-scatter, twice that for all-reduce.
    /// The larger buffer of an ordered reduce-scatter is its input, in the input's dtype.
    pub bytes: u64,
}

/// What was communicated since the last time the totals were taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepTotals {
    /// By [`Operation::name`](super::Operation::name); calls count when they are made.
    pub by_operation: BTreeMap<&'static str, OperationTotals>,
    /// Seconds that completed calls took from their turn in the queue to their end; over MPI
    /// this includes waiting for peers that come late. Calls on a device count once somebody
    /// looks after their end, so a step's last ones may count in the next.
    pub communication_seconds: f64,
    /// Seconds that callers, or a device's compute stream, spent in
    /// [`Handle::wait`](super::Handle::wait): the part that was not hidden behind computing.
    pub exposed_seconds: f64,
}

impl StepTotals {
    /// Calls of all operations together.
    pub fn calls(&self) -> u64 {
        self.by_operation.values().map(|totals| totals.calls).sum()
    }

    /// Bytes of all operations together.
    pub fn bytes(&self) -> u64 {
        self.by_operation.values().map(|totals| totals.bytes).sum()
    }
}

/// A call that was made and is not done.
#[derive(Debug, Clone, PartialEq)]
pub struct InFlightCall {
    /// Which.
    pub call: Call,
    /// Seconds since it was made.
    pub waiting_seconds: f64,
}

/// How far a rank has come in its calls.
#[derive(Debug, Clone, PartialEq)]
pub struct CallProgress {
    /// Calls made.
    pub made: u64,
    /// Calls that are done.
    pub completed: u64,
    /// The oldest call that is not done, if the caller waits, and how long it has.
    pub waiting: Option<InFlightCall>,
}

/// A call that is done.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletedCall {
    /// Which.
    pub call: Call,
    /// Seconds it took once its turn had come.
    pub communication_seconds: f64,
}

/// A stretch of time on a device, whose length is known once it is over there.
pub(super) trait Interval: fmt::Debug + Send {
    /// Its seconds, or `None` while it is not over. Does not wait.
    fn seconds(&self) -> Option<f64>;
}

#[derive(Debug, Default)]
struct Entries {
    next_sequence: u64,
    totals: StepTotals,
    in_flight: BTreeMap<u64, (Call, Instant)>,
    completed: u64,
    /// Since when a caller waits.
    waiting: Option<Instant>,
    recent: VecDeque<CompletedCall>,
    /// Calls that a device carries out in this order.
    on_device: VecDeque<(Call, Box<dyn Interval>)>,
    /// What a device's compute stream waited for calls, in its order.
    exposed_on_device: VecDeque<Box<dyn Interval>>,
}

impl Entries {
    /// Counts the end of a call.
    fn close(&mut self, call: &Call, communication_seconds: f64) {
        self.in_flight.remove(&call.sequence);
        self.completed += 1;
        self.totals.communication_seconds += communication_seconds;
        if self.recent.len() == NUM_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(CompletedCall { call: call.clone(), communication_seconds });
    }

    /// Counts what has ended on the device since the last time somebody looked.
    fn settle(&mut self) {
        while let Some((call, interval)) = self.on_device.pop_front() {
            let Some(seconds) = interval.seconds() else {
                self.on_device.push_front((call, interval));
                break;
            };
            self.close(&call, seconds);
        }
        while let Some(interval) = self.exposed_on_device.pop_front() {
            let Some(seconds) = interval.seconds() else {
                self.exposed_on_device.push_front(interval);
                break;
            };
            self.totals.exposed_seconds += seconds;
        }
    }
}

/// The calls of one rank, those of its groups included. Clones share one account, so a watchdog thread may hold one.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Entries>>);

impl Ledger {
    /// The totals since the last call of this function; they begin again at zero.
    pub fn take_step(&self) -> StepTotals {
        std::mem::take(&mut self.lock().totals)
    }

    /// The totals since the last [`Ledger::take_step`], left as they are.
    pub fn totals(&self) -> StepTotals {
        self.lock().totals.clone()
    }

    /// Calls that are not done, oldest first. The first is the one the rank is in.
    pub fn in_flight(&self) -> Vec<InFlightCall> {
        let entries = self.lock();
        let calls = entries.in_flight.values();
        calls
            .map(|(call, since)| InFlightCall {
                call: call.clone(),
                waiting_seconds: since.elapsed().as_secs_f64(),
            })
            .collect()
    }

    /// The last 64 calls that are done, oldest first.
    pub fn recent(&self) -> Vec<CompletedCall> {
        self.lock().recent.iter().cloned().collect()
    }

    /// How far this rank has come in its calls, without a look at a device: for another thread.
    pub fn progress(&self) -> CallProgress {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = entries.in_flight.values().next();
        let waiting = entries.waiting.zip(oldest).map(|(since, (call, _))| InFlightCall {
            call: call.clone(),
            waiting_seconds: since.elapsed().as_secs_f64(),
        });
        CallProgress { made: entries.next_sequence, completed: entries.completed, waiting }
    }

    /// Gives a request its number and counts it.
    pub(super) fn open(&self, request: &Request) -> Call {
        let mut entries = self.lock();
        let call = Call {
            sequence: entries.next_sequence,
            operation: request.operation,
            name: request.name.clone(),
            dtype: request.dtype,
            count: request.count,
        };
        entries.next_sequence += 1;
        let totals = entries.totals.by_operation.entry(call.operation.name()).or_default();
        totals.calls += 1;
        totals.elements += call.count as u64;
        totals.sent_bytes += request.sent_bytes();
        totals.bytes += call.bytes();
        entries.in_flight.insert(call.sequence, (call.clone(), Instant::now()));
        call
    }

    /// Counts the end of a call.
    pub(super) fn close(&self, call: &Call, communication_seconds: f64) {
        self.lock().close(call, communication_seconds);
    }

    /// Counts the end of a call when the device has carried it out.
    pub(super) fn close_later(&self, call: Call, interval: Box<dyn Interval>) {
        self.lock().on_device.push_back((call, interval));
    }

    /// Counts time that a device's compute stream waits, when it is over.
    pub(super) fn add_exposed_later(&self, interval: Box<dyn Interval>) {
        self.lock().exposed_on_device.push_back(interval);
    }

    /// Notes that a caller begins to wait.
    pub(super) fn begin_wait(&self) {
        self.lock().waiting = Some(Instant::now());
    }

    /// Counts time that a caller spent waiting, which is over.
    pub(super) fn add_exposed(&self, seconds: f64) {
        let mut entries = self.lock();
        entries.waiting = None;
        entries.totals.exposed_seconds += seconds;
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // A panic elsewhere leaves at worst one number uncounted.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.settle();
        entries
    }
}

#[cfg(test)]
mod tests;
