//! Tests of the records and of every place they go, failures included.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use protobuf::Message;
use tempfile::TempDir;
use tensorboard_proto::event::Event;

use super::progress::{in_binary_units, in_time_units, with_prefix};
use super::*;

mod costs;

const ALL_PHASES: [Phase; 9] = [
    Phase::Data,
    Phase::Gather,
    Phase::Forward,
    Phase::Head,
    Phase::Backward,
    Phase::Reduce,
    Phase::Device,
    Phase::Clip,
    Phase::Optim,
];

fn step_record(step: u64) -> StepRecord {
    StepRecord {
        step,
        loss: 2.12344,
        grad_norm: 0.912,
        lr: 3e-4,
        num_tokens: step * 8192,
        tokens_per_second: 41_234.0,
        flops_per_second: 1.5e12,
        mfu: 0.371,
        step_seconds: 0.2,
        save_seconds: 0.0,
        phases: BTreeMap::from([(Phase::Data, 0.01), (Phase::Forward, 0.06)]),
        unit_seconds: UnitSeconds::new(),
        work_seconds: Some(WorkSeconds { products: 0.125, attention: 0.03 }),
        peak_memory_bytes: 1_288_490_189,
        peak_device_memory_bytes: Some(3 << 30),
        pages_given: 4_000,
        energy_joules: Some(12.5),
        gpu_energy_joules: Some(70.25),
        communication: Communication {
            seconds: 0.03,
            exposed_seconds: 0.01,
            operations: BTreeMap::from([(
                "all_gather".to_owned(),
                OperationCount {
                    calls: 10,
                    elements: 1 << 20,
                    bytes: 1 << 21,
                    sent_bytes: 1 << 20,
                },
            )]),
        },
        memory_bytes: MemoryByCategory { parameters: 68 << 20, ..MemoryByCategory::default() },
        total_flops: 1e20,
        distill: None,
        skipped: None,
    }
}

fn eval_record(step: u64) -> EvalRecord {
    EvalRecord {
        step,
        loss: 2.0312,
        perplexity: 7.6233,
        bits_per_byte: Some(0.98123),
        sources: BTreeMap::new(),
    }
}

fn step_line(step: u64) -> Record<'static> {
    Record::Step(Cow::Owned(step_record(step)))
}

fn eval_line(step: u64) -> Record<'static> {
    Record::Eval(Cow::Owned(eval_record(step)))
}

/// A writer whose text a test can read while the display holds it.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A display of plain lines, its output and its warnings.
fn captured(total_steps: u64, log_every: u64, resumed_step: u64) -> (Progress, Captured, Captured) {
    let (out, warnings) = (Captured::default(), Captured::default());
    let progress = Progress::auto(total_steps, log_every, resumed_step, None)
        .lines_to(Box::new(out.clone()), Box::new(warnings.clone()));
    (progress, out, warnings)
}

fn records_in(path: &Path) -> Vec<Record<'static>> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn records_are_read_back_from_their_line() {
    for record in [step_line(3), eval_line(3)] {
        let line = serde_json::to_string(&record).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Record<'_>>(&line).unwrap(), record);
    }
    let line = serde_json::to_string(&step_line(3)).unwrap();
    assert!(line.starts_with(r#"{"kind":"step","step":3,"loss":2.12344,"#), "{line}");
    assert!(line.contains(r#""phases":{"data":0.01,"forward":0.06}"#), "{line}");
    assert!(line.contains(r#""work_seconds":{"products":0.125,"attention":0.03}"#), "{line}");
}

#[test]
fn a_value_that_is_not_finite_is_null_and_reads_as_nan() {
    let mut record = step_record(3);
    record.loss = f64::NAN;
    record.grad_norm = f64::INFINITY;
    let line = serde_json::to_string(&Record::Step(Cow::Owned(record))).unwrap();
    assert!(line.contains(r#""loss":null,"grad_norm":null"#), "{line}");
    let Record::Step(read) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
    assert!(read.loss.is_nan() && read.grad_norm.is_nan());
}

#[test]
fn a_phase_has_one_name() {
    for phase in ALL_PHASES {
        assert_eq!(serde_json::to_string(&phase).unwrap(), format!("{:?}", phase.name()));
    }
}

#[test]
fn metrics_are_on_the_disk_after_each_record() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run/metrics.jsonl");
    let mut file = MetricsFile::open(&path, 0).unwrap();
    for step in 1..=3 {
        file.write(&step_line(step)).unwrap();
        assert_eq!(records_in(&path).len() as u64, step);
    }
    file.finish().unwrap();
}

#[test]
fn a_resume_drops_later_and_torn_lines_only() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut file = MetricsFile::open(&path, 0).unwrap();
    for step in 1..=6 {
        file.write(&step_line(step)).unwrap();
    }
    file.write(&eval_line(4)).unwrap();
    file.write(&eval_line(6)).unwrap();
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"kind\":\"start\",\"host\":\"x\"}\n{\"kind\":\"step\",\"step\":2,\"lo");
    fs::write(&path, text).unwrap();

    let mut file = MetricsFile::open(&path, 4).unwrap();
    file.write(&step_line(5)).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let kept: Vec<_> = text.lines().map(|line| line.split(",\"l").next().unwrap()).collect();
    assert_eq!(
        kept,
        [
            r#"{"kind":"step","step":1"#,
            r#"{"kind":"step","step":2"#,
            r#"{"kind":"step","step":3"#,
            r#"{"kind":"step","step":4"#,
            r#"{"kind":"eval","step":4"#,
            r#"{"kind":"start","host":"x"}"#,
            r#"{"kind":"step","step":5"#,
        ]
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_new_run_starts_an_empty_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("metrics.jsonl");
    MetricsFile::open(&path, 0).unwrap().write(&step_line(1)).unwrap();
    MetricsFile::open(&path, 0).unwrap().write(&step_line(1)).unwrap();
    assert_eq!(records_in(&path).len(), 1);
}

/// The events of the only file in `folder` whose name ends with `suffix`.
fn events_in(folder: &Path, suffix: &str) -> Vec<Event> {
    let paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let path = paths.iter().find(|path| path.to_str().unwrap().ends_with(suffix)).unwrap();
    let bytes = fs::read(path).unwrap();
    let (mut rest, mut events) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let mut event = Event::new();
        event.merge_from_bytes(&rest[12..12 + length]).unwrap();
        events.push(event);
        rest = &rest[12 + length + 4..];
    }
    events
}

fn scalars_of(event: &Event) -> BTreeMap<String, f32> {
    let values = event.get_summary().get_value().iter();
    values.map(|value| (value.get_tag().to_string(), value.get_simple_value())).collect()
}

#[test]
fn events_are_on_the_disk_after_each_record() {
    let folder = TempDir::new().unwrap();
    let mut board = TensorBoard::open(folder.path(), 0).unwrap();
    board.write(&step_line(1)).unwrap();
    board.write(&eval_line(1)).unwrap();
    let events = events_in(folder.path(), ".000");
    assert_eq!(events[0].get_file_version(), "brain.Event:2");
    assert_eq!(events[2].get_step(), 1);
    assert!(events[2].get_wall_time() > 1.7e9);
    let scalars = scalars_of(&events[2]);
    assert_eq!(scalars["train/loss"], 2.12344);
    assert_eq!(scalars["phase_seconds/forward"], 0.06);
    assert_eq!(scalars["cost/energy_joules"], 12.5);
    assert_eq!(scalars["cost/gpu_energy_joules"], 70.25);
    assert_eq!(scalars["cost/peak_device_memory_bytes"], (3u64 << 30) as f32);
    assert_eq!(scalars["communication_sent_bytes/all_gather"], (1 << 20) as f32);
    assert_eq!(scalars["memory_bytes/parameters"], (68 << 20) as f32);
    assert_eq!(scalars["cost/total_flops"], 1e20);
    assert_eq!(scalars_of(&events[3])["val/loss"], 2.0312);
}

#[test]
fn a_resume_tells_tensorboard_from_which_step_on_it_writes() {
    let folder = TempDir::new().unwrap();
    let mut first = TensorBoard::open(folder.path(), 0).unwrap();
    first.write(&step_line(1)).unwrap();
    TensorBoard::open(folder.path(), 20).unwrap();
    // The second file of a second must not overwrite the first.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    let newest = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).max();
    let newest = newest.unwrap();
    let events = events_in(folder.path(), newest.file_name().unwrap().to_str().unwrap());
    assert!(events[1].has_session_log());
    assert_eq!(events[1].get_step(), 21);
}

#[test]
fn plain_lines_come_when_due() {
    let (mut progress, out, _) = captured(2000, 120, 0);
    for step in [1, 2, 119, 120, 121, 2000] {
        progress.step(&step_record(step));
    }
    progress.eval(&eval_record(120));
    let text = out.text();
    let lines: Vec<_> = text.lines().collect();
    let costs = "loss 2.1234  lr 3.0e-4  norm 0.91  41.2k tok/s  mfu 37.1 %  1.2 GiB  left 0 s";
    assert_eq!(lines[0], format!("step     1/2000  {costs}"));
    assert_eq!(lines[1], format!("step   120/2000  {costs}"));
    assert_eq!(lines[2], format!("step  2000/2000  {costs}"));
    assert_eq!(lines[3], "eval   120/2000  loss 2.0312  ppl 7.62  bpb 0.9812");
    assert_eq!(lines.len(), 4);
}

#[test]
fn a_display_that_nobody_reads_is_passed_over() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
    let mut progress = Progress::auto(10, 1, 0, None).lines_to(Box::new(Closed), Box::new(Closed));
    progress.step(&step_record(1));
    progress.warn("unheard");
}

#[test]
fn numbers_are_shown_in_units() {
    assert_eq!(
        [with_prefix(999.0), with_prefix(1.25e6), with_prefix(3e9)],
        ["999", "1.2M", "3.0G"]
    );
    assert_eq!([in_binary_units(5 << 20), in_binary_units(3 << 29)], ["5 MiB", "1.5 GiB"]);
    let times = [f64::NAN, 42.4, 180.0, 7500.0, 273_600.0].map(in_time_units);
    assert_eq!(times, ["0 s", "42 s", "3 min", "2 h 05 min", "3 d 04 h"]);
}

#[test]
fn sinks_that_cannot_be_opened_are_named_once_and_cost_nothing_else() {
    let run = TempDir::new().unwrap();
    // A file where a folder should be: unwritable for root too.
    fs::write(run.path().join("tensorboard"), "").unwrap();
    let (progress, _, warnings) = captured(10, 1, 0);
    let mut sinks = Sinks::open(run.path(), 0, Plots::TensorBoard, progress);
    for step in 1..=3 {
        sinks.step(&step_record(step));
    }
    sinks.eval(&eval_record(3));
    sinks.finish();
    let text = warnings.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("warning: cannot open ") && text.contains("tensorboard: "), "{text}");
    assert_eq!(records_in(&run.path().join("metrics.jsonl")).len(), 4);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_once_and_costs_nothing_else() {
    let run = TempDir::new().unwrap();
    std::os::unix::fs::symlink("/dev/full", run.path().join("metrics.jsonl")).unwrap();
    let (progress, out, warnings) = captured(10, 1, 0);
    let mut sinks = Sinks::open(run.path(), 0, Plots::TensorBoard, progress);
    for step in 1..=3 {
        sinks.step(&step_record(step));
    }
    sinks.finish();
    let text = warnings.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("metrics.jsonl: No space left on device"), "{text}");
    assert_eq!(out.text().lines().count(), 3);
    assert_eq!(events_in(&run.path().join("tensorboard"), ".000").len(), 5);
}

#[test]
fn silent_sinks_leave_nothing() {
    let mut sinks = Sinks::silent();
    sinks.step(&step_record(1));
    sinks.finish();
}

/// A file system of eight pages, unmounted when dropped.
struct TinyDisk(TempDir);

impl TinyDisk {
    /// `None` (with the reason printed) where we may not mount.
    fn mount() -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=32k", "tmpfs"]).arg(folder.path());
        match command.output() {
            Ok(output) if output.status.success() => Some(Self(folder)),
            outcome => {
                eprintln!("skipped: cannot mount a tmpfs: {outcome:?}");
                None
            }
        }
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // Lazily, for after a failed assertion a file on it may still be open.
        let status = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot unmount the tiny disk");
    }
}

#[test]
fn a_record_that_does_not_fit_leaves_no_torn_line_and_writing_goes_on_later() {
    let Some(disk) = TinyDisk::mount() else { return };
    let path = disk.0.path().join("metrics.jsonl");
    // The filler takes four of the eight pages, so the file is full in the midst of a line.
    fs::write(disk.0.path().join("filler"), vec![0; 16 * 1024]).unwrap();
    let mut file = MetricsFile::open(&path, 0).unwrap();
    let written = (1..1000).take_while(|step| file.write(&step_line(*step)).is_ok()).count();
    let full = records_in(&path).len();
    fs::remove_file(disk.0.path().join("filler")).unwrap();
    let later = file.write(&step_line(1000));
    let last = records_in(&path).last().map(Record::step);
    assert!(written > 10 && full == written, "{full} whole lines of {written} written");
    assert!(later.is_ok() && last == Some(1000), "{later:?}");
    // The one that found no room has waited.
    assert_eq!(records_in(&path).len(), written + 2);
}
