//! Which rank holds the others up, and why: a judgement over what all ranks have said.

use super::beat::Waiting;
use super::pulse::Doing;

/// What is known of a rank at a moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sight {
    pub(super) rank: usize,
    pub(super) host: String,
    pub(super) pid: u32,
    pub(super) doing: Doing,
    /// How long its training thread has made no progress, the time included in which it was silent.
    pub(super) idle_seconds: f64,
    /// How long it has not been heard of.
    pub(super) silent_seconds: f64,
    pub(super) waiting: Option<Waiting>,
    pub(super) disk_threads: u8,
    pub(super) link: Link,
    /// The state of its process, as a rank of the same host sees it, if it is out of order: `T` for
    /// stopped, `Z` and `X` for one that is gone.
    pub(super) state: Option<char>,
}

/// What has become of the connection to a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// It is there, or was never made.
    Up,
    /// The rank has said that it has come to its end.
    Ended,
    /// The rank has said that it failed, and why.
    Raised(String),
    /// It was closed without a word.
    Closed,
    /// Nothing that was sent is answered any more, not even by the other host's system.
    Unanswered,
}

/// Why a rank holds the others up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its process was stopped, by SIGSTOP as a rule.
    Stopped,
    /// Its host cannot be reached.
    Vanished,
    /// Its process is gone without a word.
    Gone,
    /// It has failed and said why.
    Raised(String),
    /// Its process lives, as far as its host's system tells, and says nothing.
    Silent,
    /// It waits for its next batch.
    SlowData,
    /// Threads of it wait for a disk.
    SlowDisk,
    /// Its training thread does not get on.
    NoProgress,
    /// It is in another call than this rank.
    Mismatch(usize),
    /// All ranks are in the same call, which does not end.
    Network,
}

/// What holds a run up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The rank.
    pub(super) culprit: usize,
    pub(super) cause: Cause,
}

/// Judges a run after `stall_seconds` without progress; `None` while all is well.
///
/// What is certain comes first: a rank that is gone, then one that is not heard of. A rank that
/// speaks is held up by others while it waits in a call, and holds others up while it does not.
pub(super) fn judge(sights: &[Sight], stall_seconds: f64) -> Option<Finding> {
    let found = |sight: &Sight, cause| Some(Finding { culprit: sight.rank, cause });
    for sight in sights {
        match &sight.link {
            Link::Closed => return found(sight, Cause::Gone),
            Link::Raised(reason) => return found(sight, Cause::Raised(reason.clone())),
            Link::Unanswered => return found(sight, Cause::Vanished),
            Link::Up if matches!(sight.state, Some('X' | 'Z')) => return found(sight, Cause::Gone),
            Link::Up | Link::Ended => {}
        }
    }
    let here = || sights.iter().filter(|sight| sight.link == Link::Up);
    let is_silent = |sight: &&Sight| sight.silent_seconds >= stall_seconds;
    if let Some(sight) = here().filter(is_silent).max_by(by(|sight| sight.silent_seconds)) {
        let is_stopped = matches!(sight.state, Some('T' | 't'));
        return found(sight, if is_stopped { Cause::Stopped } else { Cause::Silent });
    }
    let is_idle = |sight: &&Sight| sight.idle_seconds >= stall_seconds;
    let idle = here().filter(is_idle).filter(|sight| sight.waiting.is_none());
    if let Some(sight) = idle.max_by(by(|sight| sight.idle_seconds)) {
        let cause = match (sight.disk_threads, sight.doing.phase.as_str()) {
            (1.., _) => Cause::SlowDisk,
            (0, "data") => Cause::SlowData,
            _ => Cause::NoProgress,
        };
        return found(sight, cause);
    }
    if here().count() > 0 && here().all(|sight| is_idle(&sight)) {
        return Some(waiting_for_each_other(&here().collect::<Vec<_>>()));
    }
    None
}

/// All ranks wait in calls. Where these differ, the one that fewest are in is named, against the
/// first rank in another.
fn waiting_for_each_other(sights: &[&Sight]) -> Finding {
    let call = |sight: &Sight| sight.waiting.as_ref().map(|waiting| waiting.call.clone());
    let like = |sight: &Sight| sights.iter().filter(|other| call(other) == call(sight)).count();
    // The last of equals, so that of two ranks the second is named against the first.
    let rarest = sights.iter().rev().min_by_key(|sight| like(sight)).expect("at least one rank");
    let other = sights.iter().find(|sight| call(sight) != call(rarest));
    let cause = other.map_or(Cause::Network, |other| Cause::Mismatch(other.rank));
    Finding { culprit: rarest.rank, cause }
}

fn by(seconds: impl Fn(&Sight) -> f64) -> impl Fn(&&Sight, &&Sight) -> std::cmp::Ordering {
    move |a, b| seconds(a).total_cmp(&seconds(b))
}

impl Finding {
    /// One line: the rank, its host, what it is in, since when, and who waits for it.
    pub(super) fn describe(&self, sights: &[Sight]) -> String {
        let of = |rank: usize| sights.iter().find(|sight| sight.rank == rank);
        let Some(sight) = of(self.culprit) else { return format!("rank {}", self.culprit) };
        let Sight { rank, host, pid, .. } = sight;
        let since = sight.idle_seconds.max(sight.silent_seconds);
        let why = match &self.cause {
            Cause::Stopped => format!("is stopped (SIGSTOP) since {since:.0} s"),
            Cause::Vanished => "has vanished: its host does not answer".to_owned(),
            Cause::Gone => "is gone without a word (killed, or it left by itself)".to_owned(),
            Cause::Raised(reason) => format!("has failed: {reason}"),
            Cause::Silent => format!("is silent since {since:.0} s, though its host answers"),
            Cause::SlowData => format!("has waited for data for {since:.0} s"),
            Cause::SlowDisk => format!("has waited for a disk for {since:.0} s"),
            Cause::NoProgress => format!("has made no progress for {since:.0} s"),
            Cause::Network => {
                format!("and all others are in one call that has not ended for {since:.0} s")
            }
            Cause::Mismatch(other) => {
                let theirs = of(*other).and_then(|other| other.waiting.as_ref());
                let theirs = theirs.map_or("no call", |waiting| &waiting.call);
                format!(
                    "is in another call than rank {other}, which is in {theirs}, since {since:.0} s"
                )
            }
        };
        let own = match &sight.waiting {
            Some(waiting) => format!(", in call {} {}", waiting.sequence, waiting.call),
            None => String::new(),
        };
        let what = sight.doing.describe();
        let waits = |other: &&Sight| other.rank != *rank && other.waiting.is_some();
        let mut waiters = sights.iter().filter(waits).filter_map(|other| {
            let Waiting { sequence, call, millis } = other.waiting.as_ref()?;
            let seconds = millis / 1000;
            Some(format!("rank {} in call {sequence} {call} for {seconds} s", other.rank))
        });
        let first = waiters.next();
        let more = match waiters.count() {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        let waiters = first.map_or("nobody waits for it".to_owned(), |first| {
            format!("waiting for it: {first}{more}")
        });
        format!("rank {rank} on {host} (process {pid}) {why}; {what}{own}; {waiters}")
    }
}
