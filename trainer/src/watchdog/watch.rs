//! The watchdog's loop on one rank: beats out, beats in, and the end of a run that is stuck.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use signal_hook::low_level::exit;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::beat::{Beat, FRAME_BYTES, Kind};
use super::channel::{Channel, Event};
use super::judge::{Cause, Finding, Sight, judge};
use super::meeting::{Meeting, NUM_HUBS};
use super::own::Own;
use super::table::Table;
use super::{LastWord, STALLED, process, say, stacks, stacks_file};
use crate::beacon::LastSeen;
use crate::config::WatchdogPlan;

/// How long the launcher may take to end the ranks when one is gone, before the watchdog does.
const LAUNCHER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a process takes to go once its connections are closed.
const EXIT_PAUSE: Duration = Duration::from_millis(30);

/// How long ranks have to leave their stacks, at least and at most.
const STACKS_SECONDS: [f64; 2] = [1.0, 6.0];

/// Words under way.
const EVENTS: usize = 1024;

/// The watch of one rank.
#[derive(Debug)]
pub(super) struct Watch {
    run_folder: PathBuf,
    stall_seconds: f64,
    beat: Duration,
    own: Own,
    table: Table,
    meeting: Meeting,
    /// When ranks were first found gone: the launcher gets a moment to end the rest.
    gone_since: Option<Instant>,
    said: bool,
}

impl Watch {
    pub(super) fn new(plan: &WatchdogPlan, run_folder: &Path, own: Own, meeting: Meeting) -> Self {
        Self {
            run_folder: run_folder.to_owned(),
            stall_seconds: plan.stall_seconds,
            beat: Duration::from_secs_f64(plan.beat_seconds),
            own,
            table: Table::new(&meeting.places),
            meeting,
            gone_since: None,
            said: false,
        }
    }

    /// Watches until this rank has said its last word.
    pub(super) async fn run(mut self, mut last_words: mpsc::Receiver<LastWord>) {
        let first = self.own.beat();
        let (frames, _) = watch::channel(first.encode());
        let (events, mut arrivals) = mpsc::channel(EVENTS);
        self.connect(&frames, events);
        let mut ticks = interval(self.beat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_tick = Instant::now();
        loop {
            tokio::select! {
                word = last_words.recv() => {
                    let rank = self.own.rank;
                    let beat = match word {
                        Some(LastWord::Raised(reason)) => Beat::of(Kind::Raised, rank, &reason),
                        _ => Beat::of(Kind::Bye, rank, ""),
                    };
                    frames.send_replace(beat.encode());
                    if self.meeting.places.len() > 1 {
                        // Gives the connections a turn to write it, and peers one to read it.
                        sleep(Duration::from_millis(20)).await;
                        drop(frames);
                        sleep(Duration::from_millis(80)).await;
                    }
                    return;
                }
                Some(event) = arrivals.recv() => {
                    let is_loss = matches!(event, Event::Lost { .. });
                    self.take_in(event).await;
                    if is_loss {
                        // The process is closed after its connections; and then at once, as the
                        // launcher is about to end all ranks.
                        sleep(EXIT_PAUSE).await;
                        self.look(&frames).await;
                    }
                }
                _ = ticks.tick() => {
                    if last_tick.elapsed() > 3 * self.beat + Duration::from_secs(1) {
                        self.own.forgive();
                        self.table.forgive();
                    }
                    last_tick = Instant::now();
                    let beat = self.own.beat();
                    frames.send_replace(beat.encode());
                    self.table.hear(beat);
                    self.look(&frames).await;
                }
            }
        }
    }

    /// Listens, if this rank is a hub, and goes to the hubs.
    fn connect(
        &mut self,
        frames: &watch::Sender<Box<[u8; FRAME_BYTES]>>,
        events: mpsc::Sender<Event>,
    ) {
        let channel = Channel {
            rank: self.own.rank,
            degree: self.meeting.places.len(),
            token: self.meeting.token.clone(),
            unanswered_after: Duration::from_secs_f64((0.7 * self.stall_seconds).max(1.0)),
            frames: frames.subscribe(),
            events,
        };
        if let Some(listener) = self.meeting.listener.take() {
            let listening = listener.set_nonblocking(true);
            match listening.and_then(|()| tokio::net::TcpListener::from_std(listener)) {
                Ok(listener) => drop(tokio::spawn(channel.clone().listen(listener))),
                Err(error) => say(&format!("the watchdog cannot listen: {error}")),
            }
        }
        for (hub, address) in self.meeting.hubs.iter().enumerate() {
            // Of the two hubs the second goes to the first.
            let visits = hub < self.own.rank;
            if let (Some(address), true) = (address, visits) {
                tokio::spawn(channel.clone().visit(hub, *address));
            }
        }
    }

    async fn take_in(&mut self, event: Event) {
        match event {
            Event::Heard(beat) if beat.kind == Kind::Alarm => self.obey_no_one(&beat).await,
            Event::Heard(beat) => self.table.hear(beat),
            Event::Lost { rank, unanswered } => self.table.lose(rank, unanswered),
        }
    }

    /// A hub has found the run stalled: this rank leaves its stacks, and its own end follows.
    async fn obey_no_one(&mut self, alarm: &Beat) {
        self.leave_stacks(alarm.doing.step).await;
        // The hub ends first, as the one that has told why.
        sleep(Duration::from_secs(2)).await;
        exit(STALLED);
    }

    /// Writes this rank's stacks, and waits for those that threads note themselves.
    async fn leave_stacks(&self, step: u64) {
        let rank = self.own.rank;
        let place = &self.meeting.places[rank];
        let doing = self.own.doing().describe();
        let title = format!("rank {rank} on {} (process {}) {doing}", place.host, place.pid);
        let file = stacks_file(&self.run_folder, step);
        if let Err(error) = stacks::append_own(&file, &title, &self.own.ledger) {
            say(&format!("cannot write {}: {error}", file.display()));
            return;
        }
        let begun = Instant::now();
        let [least, most] = STACKS_SECONDS.map(Duration::from_secs_f64);
        let backtraces = stacks::append_own_backtraces(&file, &title);
        let is_done = || backtraces.as_ref().map_or(true, JoinHandle::is_finished);
        while begun.elapsed() < least || (begun.elapsed() < most && !is_done()) {
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Judges, if this rank is to: rank 0 does, rank 1 where rank 0 is out of sight, and any other
    /// only finds that nobody is left to do it.
    async fn look(&mut self, frames: &watch::Sender<Box<[u8; FRAME_BYTES]>>) {
        if self.own.rank < NUM_HUBS {
            self.table.witness(self.own.beside(), &self.own.witness());
        }
        let stall = Duration::from_secs_f64(self.stall_seconds);
        let hub_is_lost = |hub: usize| self.table.is_out_of_sight(hub, stall);
        if self.table.has_ended(0) && self.own.rank > 0 {
            return;
        }
        let judges = match self.own.rank {
            0 => true,
            1 => hub_is_lost(0),
            _ => (0..NUM_HUBS).all(hub_is_lost),
        };
        if !judges {
            return;
        }
        let mut sights = self.table.sights();
        // What the others do the first hub knew better: of it alone the rest judge.
        let is_judged = |sight: &&Sight| self.own.rank == 0 || sight.rank == 0;
        let judged: Vec<Sight> = sights.iter().filter(is_judged).cloned().collect();
        let Some(finding) = judge(&judged, self.stall_seconds) else {
            self.gone_since = None;
            return;
        };
        // What a rank did last stands in its beacon, later than in its last beat.
        let is_culprit = |sight: &&mut Sight| sight.rank == finding.culprit;
        if let (Some(sight), Ok(seen)) =
            (sights.iter_mut().find(is_culprit), LastSeen::read(&self.run_folder, finding.culprit))
            && seen.step >= sight.doing.step
        {
            (sight.doing.step, sight.doing.phase, sight.doing.unit) =
                (seen.step, seen.phase, seen.unit);
        }
        let line = finding.describe(&sights);
        self.end(&finding, &line, frames).await;
    }

    /// Says what was found and ends the run.
    async fn end(
        &mut self,
        finding: &Finding,
        line: &str,
        frames: &watch::Sender<Box<[u8; FRAME_BYTES]>>,
    ) {
        if let Cause::Gone | Cause::Raised(_) = finding.cause {
            // A rank that failed has said so itself.
            if finding.cause == Cause::Gone && !self.said {
                say(line);
            }
            self.said = true;
            let since = *self.gone_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= LAUNCHER_TIMEOUT {
                exit(STALLED);
            }
            return;
        }
        let step = self.own.doing().step;
        let file = stacks_file(&self.run_folder, step);
        say(&format!("stalled: {line}; stacks in {}", file.display()));
        let mut alarm = Beat::of(Kind::Alarm, self.own.rank, "");
        alarm.doing.step = step;
        frames.send_replace(alarm.encode());
        if let Some(pid) = self.own.process_of(finding.culprit)
            && finding.cause == Cause::Stopped
        {
            let title = format!("rank {} (process {pid})", finding.culprit);
            // The line above stands without it.
            let _ = stacks::append_for(&file, &title, pid);
        }
        self.leave_stacks(step).await;
        if finding.cause == Cause::Vanished {
            // Where it cannot be ended the run is over all the same.
            let _ = process::end_launcher_later();
        }
        exit(STALLED);
    }
}
