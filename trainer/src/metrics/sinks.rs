//! All places a record reaches, behind one door; a failing one is named once and passed over.

use std::borrow::Cow;
use std::path::Path;

use super::{
    Error, EvalRecord, MetricsFile, Progress, Record, RewindRecord, StepRecord, TensorBoard,
};

/// The file of records in a run folder.
const METRICS_FILE: &str = "metrics.jsonl";

/// The folder of event files in a run folder.
const TENSORBOARD_FOLDER: &str = "tensorboard";

/// Where the records of a run go. Nothing here returns an error: metrics never end a run.
#[derive(Debug)]
pub struct Sinks {
    progress: Progress,
    metrics: Sink<MetricsFile>,
    tensorboard: Sink<TensorBoard>,
}

/// Whether a run leaves plots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plots {
    /// TensorBoard's event files.
    TensorBoard,
    /// None: `metrics.jsonl` alone.
    None,
}

/// A sink and what became of it.
#[derive(Debug)]
enum Sink<T> {
    /// It works, as far as we know.
    Live(T),
    /// A write failed and was reported; later writes are still tried, for a disk may be freed.
    Reported(T),
    /// It is not wanted, or could not be opened, which was reported.
    Off,
}

impl Sinks {
    /// Opens `metrics.jsonl` and, if plots are wanted, `tensorboard/` in `run_folder` for a run that goes on after
    /// `resumed_step` (0 for a new run).
    #[must_use]
    pub fn open(
        run_folder: &Path,
        resumed_step: u64,
        plots: Plots,
        mut progress: Progress,
    ) -> Self {
        let metrics = MetricsFile::open(&run_folder.join(METRICS_FILE), resumed_step);
        let metrics = Sink::opened(metrics, &mut progress);
        let tensorboard = match plots {
            Plots::TensorBoard => {
                let folder = run_folder.join(TENSORBOARD_FOLDER);
                Sink::opened(TensorBoard::open(&folder, resumed_step), &mut progress)
            }
            Plots::None => Sink::Off,
        };
        Self { progress, metrics, tensorboard }
    }

    /// Records nothing, for the ranks that do not report.
    #[must_use]
    pub fn silent() -> Self {
        Self { progress: Progress::silent(), metrics: Sink::Off, tensorboard: Sink::Off }
    }

    /// Records one step.
    pub fn step(&mut self, record: &StepRecord) {
        self.progress.step(record);
        self.write(&Record::Step(Cow::Borrowed(record)));
    }

    /// Records one evaluation.
    pub fn eval(&mut self, record: &EvalRecord) {
        self.progress.eval(record);
        self.write(&Record::Eval(Cow::Borrowed(record)));
    }

    /// The display, for lines that are not records.
    pub fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// Records that the run went back, once the sinks have been opened anew at its goal.
    pub fn rewind(&mut self, record: RewindRecord) {
        let RewindRecord { step, trip, to_step, excluded_step, .. } = record;
        let what = trip.describe();
        self.progress.warn(&format!(
            "step {step} {what}: back to step {to_step}, without the data of step {excluded_step}"
        ));
        self.write(&Record::Rewind(record));
    }

    /// Puts everything on the disk and leaves the display in its last state.
    pub fn finish(&mut self) {
        let Self { progress, metrics, tensorboard } = self;
        metrics.attempt(progress, MetricsFile::finish);
        tensorboard.attempt(progress, TensorBoard::finish);
        progress.finish();
    }

    fn write(&mut self, record: &Record<'_>) {
        let Self { progress, metrics, tensorboard } = self;
        metrics.attempt(progress, |file| file.write(record));
        tensorboard.attempt(progress, |board| board.write(record));
    }
}

impl<T> Sink<T> {
    fn opened(outcome: Result<T, Error>, progress: &mut Progress) -> Self {
        match outcome {
            Ok(sink) => Self::Live(sink),
            Err(error) => {
                progress.warn(&format!("{error}; the run goes on without it"));
                Self::Off
            }
        }
    }

    /// Does `work`; the first failure is reported, later ones are not.
    fn attempt(&mut self, progress: &mut Progress, work: impl FnOnce(&mut T) -> Result<(), Error>) {
        *self = match std::mem::replace(self, Self::Off) {
            Self::Live(mut sink) => match work(&mut sink) {
                Ok(()) => Self::Live(sink),
                Err(error) => {
                    progress.warn(&format!("{error}; the run goes on"));
                    Self::Reported(sink)
                }
            },
            Self::Reported(mut sink) => {
                // Already reported; the write is tried because the disk may have been freed.
                let _ = work(&mut sink);
                Self::Reported(sink)
            }
            Self::Off => Self::Off,
        };
    }
}
