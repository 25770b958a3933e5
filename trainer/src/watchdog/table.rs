//! What a hub has heard of every rank.

use std::time::{Duration, Instant};

use super::beat::{Beat, Kind};
use super::judge::{Link, Sight};
use super::meeting::Place;

/// One rank.
#[derive(Debug)]
struct Entry {
    last: Option<Beat>,
    heard: Instant,
    link: Link,
    state: Option<char>,
    /// Whether it was ever heard of: one that cannot come to this hub is none of its.
    has_come: bool,
}

/// All ranks.
#[derive(Debug)]
pub(super) struct Table {
    places: Vec<Place>,
    entries: Vec<Entry>,
}

impl Table {
    pub(super) fn new(places: &[Place]) -> Self {
        let entry = |_| Entry {
            last: None,
            heard: Instant::now(),
            link: Link::Up,
            state: None,
            has_come: false,
        };
        Self { entries: places.iter().map(entry).collect(), places: places.to_vec() }
    }

    /// Takes in what a rank says.
    pub(super) fn hear(&mut self, beat: Beat) {
        for &(rank, state) in &beat.witnessed {
            if let Some(entry) = self.entries.get_mut(rank) {
                entry.state = Some(char::from(state));
            }
        }
        let entry = &mut self.entries[beat.rank];
        entry.heard = Instant::now();
        entry.state = None;
        entry.has_come = true;
        match beat.kind {
            Kind::Bye => entry.link = Link::Ended,
            Kind::Raised => entry.link = Link::Raised(beat.note),
            Kind::Beat => {
                entry.last = Some(beat);
                if matches!(entry.link, Link::Closed | Link::Unanswered) {
                    entry.link = Link::Up;
                }
            }
            Kind::Hello | Kind::Alarm => {}
        }
    }

    /// Notes that the connection to a rank is gone, which is no news after its last word.
    pub(super) fn lose(&mut self, rank: usize, unanswered: bool) {
        let entry = &mut self.entries[rank];
        if entry.link == Link::Up {
            entry.link = if unanswered { Link::Unanswered } else { Link::Closed };
        }
    }

    /// Begins to count silence anew: this process was stopped itself.
    pub(super) fn forgive(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.heard = Instant::now());
    }

    /// Whether a rank has not been heard of for so long, or is gone.
    pub(super) fn is_out_of_sight(&self, rank: usize, after: Duration) -> bool {
        let entry = &self.entries[rank];
        let is_up = matches!(entry.link, Link::Up);
        matches!(entry.link, Link::Closed | Link::Unanswered | Link::Raised(_))
            || (is_up && matches!(entry.state, Some('X' | 'Z')))
            || (entry.has_come && entry.heard.elapsed() >= after)
    }

    /// Whether a rank has come to its end as it should.
    pub(super) fn has_ended(&self, rank: usize) -> bool {
        self.entries[rank].link == Link::Ended
    }

    /// Notes what this rank sees of processes beside it: those named are stopped or gone, and no
    /// other is. A connection to a process that is there is not lost for good.
    pub(super) fn witness(&mut self, beside: impl Iterator<Item = usize>, seen: &[(usize, u8)]) {
        for rank in beside {
            let entry = &mut self.entries[rank];
            entry.state = seen.iter().find(|(other, _)| *other == rank).map(|&(_, s)| s.into());
            if entry.link == Link::Closed && !matches!(entry.state, Some('Z' | 'X')) {
                entry.link = Link::Up;
            }
        }
    }

    /// What is known of every rank now.
    pub(super) fn sights(&self) -> Vec<Sight> {
        let sight = |(rank, entry): (usize, &Entry)| {
            let silent_seconds = entry.heard.elapsed().as_secs_f64();
            let last = entry.last.clone().unwrap_or_else(|| Beat::of(Kind::Beat, rank, ""));
            Sight {
                rank,
                host: self.places[rank].host.clone(),
                pid: self.places[rank].pid,
                idle_seconds: last.idle_millis as f64 / 1e3 + silent_seconds,
                silent_seconds,
                waiting: last.waiting,
                disk_threads: last.disk_threads,
                doing: last.doing,
                link: entry.link.clone(),
                state: entry.state,
            }
        };
        let come = self.entries.iter().enumerate().filter(|(_, entry)| entry.has_come);
        come.map(sight).collect()
    }
}
