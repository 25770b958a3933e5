//! TensorBoard event files, written so that an I/O error is an error and not a panic.
//!
//! Of `tensorboard-rs` this uses the record framing and the summaries. Its own `SummaryWriter`
//! creates and writes the file on an unnamed thread with `expect`, so a full disk prints a panic
//! and then panics the caller too; there is no way to ask it whether it still works.

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::{Message, RepeatedField};
use tensorboard_proto::event::{Event, SessionLog, SessionLog_SessionStatus};
use tensorboard_proto::summary::Summary;
use tensorboard_rs::record_writer::RecordWriter;
use tensorboard_rs::summary::scalar;

use super::append_file::AppendFile;
use super::{Communication, Error, EvalRecord, Record, StepRecord, WorkSeconds};

/// The format version that TensorBoard expects in the first event of a file.
const FILE_VERSION: &str = "brain.Event:2";

/// How many event files of one process may begin in the same second.
const MAX_FILES_PER_SECOND: u32 = 1000;

/// An open event file.
///
/// The x axis of TensorBoard is the step only; cumulative FLOPs are logged as a scalar of their
/// own. Values are stored as `f32`.
#[derive(Debug)]
pub struct TensorBoard {
    file: AppendFile,
}

impl TensorBoard {
    /// Begins a new event file in `folder` for a run that goes on after `resumed_step` (0 for a
    /// new run).
    ///
    /// The file opens with a session start at `resumed_step + 1`. TensorBoard then drops the
    /// points of earlier files from that step on, so a resumed run shows no point twice and the
    /// earlier files stay as they are.
    ///
    /// # Errors
    /// [`Error::Open`] if the folder or the file cannot be created, [`Error::Append`] if the
    /// first events cannot be written.
    pub fn open(folder: &Path, resumed_step: u64) -> Result<Self, Error> {
        std::fs::create_dir_all(folder)
            .map_err(|cause| Error::Open { path: folder.to_path_buf(), cause })?;
        let mut board = Self { file: create_event_file(folder)? };
        let mut version = Event::new();
        version.set_file_version(FILE_VERSION.to_string());
        board.write_event(version, 0)?;
        let mut session = SessionLog::new();
        session.set_status(SessionLog_SessionStatus::START);
        let mut start = Event::new();
        start.set_session_log(session);
        board.write_event(start, resumed_step + 1)?;
        Ok(board)
    }

    /// Writes the scalars of one record as one event; TensorBoard sees it at once.
    ///
    /// # Errors
    /// [`Error::Append`] if the event could not be written whole; no part of it is left.
    pub fn write(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let scalars = match record {
            Record::Step(record) => step_scalars(record),
            Record::Eval(record) => eval_scalars(record),
            Record::Rewind(_) => return Ok(()),
        };
        let values = scalars.iter().flat_map(|(tag, value)| {
            // TensorBoard stores scalars as f32.
            scalar(tag, *value as f32).take_value().into_vec()
        });
        let mut summary = Summary::new();
        summary.set_value(RepeatedField::from_vec(values.collect()));
        let mut event = Event::new();
        event.set_summary(summary);
        self.write_event(event, record.step())
    }

    /// Puts the file on the disk.
    ///
    /// # Errors
    /// [`Error::Append`] if the operating system cannot.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.file.sync()
    }

    fn write_event(&mut self, mut event: Event, step: u64) -> Result<(), Error> {
        event.set_wall_time(seconds_since_epoch());
        event.set_step(step as i64);
        let encode =
            |reason: String| Error::Encode { path: self.file.path().to_path_buf(), step, reason };
        let data = event.write_to_bytes().map_err(|error| encode(error.to_string()))?;
        let mut framed = Vec::new();
        let mut frame = RecordWriter::new(&mut framed);
        frame.write(&data).map_err(|error| encode(error.to_string()))?;
        self.file.append(&framed)
    }
}

/// Creates an event file of a new name; TensorBoard reads the files in the order of their names.
fn create_event_file(folder: &Path) -> Result<AppendFile, Error> {
    let seconds = seconds_since_epoch() as u64;
    let process = std::process::id();
    let mut number = 0;
    loop {
        let name = format!("events.out.tfevents.{seconds:010}.grove.{process}.{number:03}");
        match AppendFile::create_new(&folder.join(name)) {
            Err(Error::Open { cause, .. })
                if cause.kind() == io::ErrorKind::AlreadyExists
                    && number + 1 < MAX_FILES_PER_SECOND =>
            {
                number += 1;
            }
            outcome => return outcome,
        }
    }
}

fn step_scalars(record: &StepRecord) -> Vec<(String, f64)> {
    let mut scalars = vec![
        ("train/loss".to_string(), record.loss),
        ("train/grad_norm".to_string(), record.grad_norm),
        ("train/lr".to_string(), record.lr),
        ("train/num_tokens".to_string(), record.num_tokens as f64),
        ("speed/tokens_per_second".to_string(), record.tokens_per_second),
        ("speed/flops_per_second".to_string(), record.flops_per_second),
        ("speed/mfu".to_string(), record.mfu),
        ("speed/step_seconds".to_string(), record.step_seconds),
        ("cost/total_flops".to_string(), record.total_flops),
        ("cost/peak_memory_bytes".to_string(), record.peak_memory_bytes as f64),
        ("cost/pages_given".to_string(), record.pages_given as f64),
    ];
    scalars.extend(record.energy_joules.map(|joules| ("cost/energy_joules".to_string(), joules)));
    let of_gpus = [
        ("cost/gpu_energy_joules", record.gpu_energy_joules),
        ("cost/peak_device_memory_bytes", record.peak_device_memory_bytes.map(|it| it as f64)),
    ];
    scalars.extend(of_gpus.into_iter().filter_map(|(tag, it)| Some((tag.to_string(), it?))));
    if let Some(distill) = &record.distill {
        scalars.push(("train/distill_loss".to_string(), distill.loss));
        scalars.push(("train/distill_weight".to_string(), distill.weight));
    }
    let Communication { seconds, exposed_seconds, operations } = &record.communication;
    scalars.push(("communication/seconds".to_string(), *seconds));
    scalars.push(("communication/exposed_seconds".to_string(), *exposed_seconds));
    scalars.extend(operations.iter().map(|(name, count)| {
        (format!("communication_sent_bytes/{name}"), count.sent_bytes as f64)
    }));
    scalars.extend(
        record
            .memory_bytes
            .named()
            .map(|(category, bytes)| (format!("memory_bytes/{category}"), bytes as f64)),
    );
    scalars.extend(
        record
            .phases
            .iter()
            .map(|(phase, seconds)| (format!("phase_seconds/{}", phase.name()), *seconds)),
    );
    if let Some(WorkSeconds { products, attention }) = record.work_seconds {
        scalars.push(("work_seconds/products".to_string(), products));
        scalars.push(("work_seconds/attention".to_string(), attention));
    }
    scalars
}

fn eval_scalars(record: &EvalRecord) -> Vec<(String, f64)> {
    let mut scalars = vec![
        ("val/loss".to_string(), record.loss),
        ("val/perplexity".to_string(), record.perplexity),
    ];
    scalars.extend(record.bits_per_byte.map(|bits| ("val/bits_per_byte".to_string(), bits)));
    let sources = record.sources.iter();
    scalars.extend(sources.map(|(name, loss)| (format!("val_loss/{name}"), *loss)));
    scalars
}

/// The wall clock; a clock before 1970 counts as 1970, for a plot must not end a run.
fn seconds_since_epoch() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}
