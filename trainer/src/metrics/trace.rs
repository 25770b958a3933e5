//! A trace of some steps: which phase ran in which unit, and when, as a file that Chrome's
//! `about:tracing`, Perfetto and others show.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::record::Phase;

/// The folder of traces in a run's folder.
const FOLDER: &str = "profile";

/// What one rank did, span after span.
#[derive(Clone, Debug)]
pub struct Trace {
    begun: Instant,
    spans: Vec<Span>,
    /// How many of the spans were handed out by [`Trace::take_unit_seconds`].
    counted: usize,
    open: Option<Open>,
}

/// Seconds of each phase in each unit; phases outside of units are under the empty name.
pub type UnitSeconds = BTreeMap<String, BTreeMap<Phase, f64>>;

/// One phase in one unit, from its begin to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What was done.
    pub phase: Phase,
    /// The unit; empty outside of units.
    pub unit: String,
    /// When it began, in seconds since the trace did.
    pub begin_seconds: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

#[derive(Clone, Debug)]
struct Open {
    phase: Phase,
    unit: String,
    since: Instant,
}

/// One "complete event" of the trace event format: times are in microseconds.
#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    cat: &'a str,
    ph: &'a str,
    ts: f64,
    dur: f64,
    pid: usize,
    tid: usize,
}

impl Trace {
    /// A trace that begins now.
    #[must_use]
    pub fn begin() -> Self {
        Self { begun: Instant::now(), spans: Vec::new(), counted: 0, open: None }
    }

    /// Ends the running span and begins one; the same phase in the same unit goes on.
    pub fn enter(&mut self, phase: Phase, unit: &str) {
        if self.open.as_ref().is_some_and(|open| open.phase == phase && open.unit == unit) {
            return;
        }
        self.leave();
        self.open = Some(Open { phase, unit: unit.to_owned(), since: Instant::now() });
    }

    /// Ends the running span, if any.
    pub fn leave(&mut self) {
        if let Some(Open { phase, unit, since }) = self.open.take() {
            let begin_seconds = since.duration_since(self.begun).as_secs_f64();
            self.spans.push(Span {
                phase,
                unit,
                begin_seconds,
                seconds: since.elapsed().as_secs_f64(),
            });
        }
    }

    /// The ended spans, in the order of their begin.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Seconds by unit and phase of the spans that ended since the last call.
    pub fn take_unit_seconds(&mut self) -> UnitSeconds {
        let mut seconds = UnitSeconds::new();
        for span in &self.spans[self.counted..] {
            let unit = seconds.entry(span.unit.clone()).or_default();
            *unit.entry(span.phase).or_default() += span.seconds;
        }
        self.counted = self.spans.len();
        seconds
    }

    /// Writes `<run_folder>/profile/rank-<rank>.json` in the trace event format, a process for a
    /// rank, and returns its path.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, run_folder: &Path, rank: usize) -> io::Result<PathBuf> {
        let folder = run_folder.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("rank-{rank}.json"));
        let mut out = BufWriter::new(File::create(&path)?);
        let events: Vec<Event<'_>> = self.spans.iter().map(|span| event(span, rank)).collect();
        serde_json::to_writer(&mut out, &serde_json::json!({ "traceEvents": events }))?;
        out.flush()?;
        Ok(path)
    }
}

fn event(span: &Span, rank: usize) -> Event<'_> {
    let category = span.phase.name();
    let name = if span.unit.is_empty() { category } else { span.unit.as_str() };
    let (ts, dur) = (span.begin_seconds * 1e6, span.seconds * 1e6);
    Event { name, cat: category, ph: "X", ts, dur, pid: rank, tid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_follow_each_other_and_are_read_back_as_events() {
        let mut trace = Trace::begin();
        trace.enter(Phase::Forward, "block 0");
        trace.enter(Phase::Forward, "block 0");
        trace.enter(Phase::Forward, "block 1");
        trace.enter(Phase::Optim, "");
        trace.leave();
        trace.leave();
        let of = |span: &Span| (span.phase, span.unit.clone());
        let expected =
            [(Phase::Forward, "block 0"), (Phase::Forward, "block 1"), (Phase::Optim, "")];
        let found: Vec<_> = trace.spans().iter().map(of).collect();
        assert_eq!(found, expected.map(|(phase, unit)| (phase, unit.to_owned())));
        assert!(trace.spans().windows(2).all(|two| two[0].begin_seconds <= two[1].begin_seconds));
        let seconds = trace.take_unit_seconds();
        assert_eq!(seconds.keys().collect::<Vec<_>>(), ["", "block 0", "block 1"]);
        assert_eq!(seconds[""][&Phase::Optim], trace.spans()[2].seconds);
        assert!(trace.take_unit_seconds().is_empty(), "each span counts once");

        let folder = tempfile::tempdir().expect("a folder");
        let path = trace.write(folder.path(), 3).expect("it can be written");
        let text = fs::read_to_string(&path).expect("a file");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let events = json["traceEvents"].as_array().expect("events");
        assert_eq!(events.len(), 3);
        assert_eq!((&events[1]["name"], &events[1]["cat"]), (&"block 1".into(), &"forward".into()));
        assert_eq!((&events[2]["name"], &events[2]["pid"]), (&"optim".into(), &3.into()));
        assert!(events.iter().all(|event| event["ph"] == "X" && event["dur"].is_number()));
    }
}
