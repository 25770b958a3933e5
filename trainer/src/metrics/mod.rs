//! What a run costs and reaches, step by step: the records, and where they are written.
//!
//! A [`StepRecord`] or [`EvalRecord`] goes to [`Sinks`], which holds the three places a record
//! can reach: the progress display, `metrics.jsonl` and TensorBoard event files. A sink that
//! fails (a full disk, an unwritable folder) costs its own output and one warning, never the run.

mod append_file;
mod energy;
mod error;
mod forwarded;
mod gpu_energy;
mod jsonl;
mod memory;
mod mfu;
mod progress;
mod record;
mod sinks;
mod tensorboard;
#[cfg(test)]
mod tests;
mod trace;

pub use energy::EnergyMeter;
pub use error::Error;
pub use gpu_energy::GpuEnergy;
pub use jsonl::MetricsFile;
pub use memory::{pages_given, peak_resident_bytes};
pub use mfu::mfu;
pub use progress::Progress;
pub use record::{
    Communication, DistillRecord, EvalRecord, MemoryByCategory, OperationCount, Phase, Record,
    RewindRecord, StepRecord, Trip, WorkSeconds,
};
pub use sinks::{Plots, Sinks};
pub use tensorboard::TensorBoard;
pub use trace::{Span, Trace, UnitSeconds};
