//! Saving behind the run's back: a task on each rank writes what the rank has copied, while steps go
//! on.
//!
//! A save goes through stages, each of which ends on all ranks before the next begins. How far a rank
//! is travels with the integers that each step sums over ranks anyway, so all ranks know of a stage's
//! end at the same step, and no call is made for it. [`Saver::drain`] waits instead, with calls.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use grove_parallel::Collective;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::checkpoint::{self, Blueprint, SmallFiles, Snapshot, Staging, prune};
use crate::step_numbers::SaveCounts;

/// Which checkpoints stay.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The newest so many.
    pub keep_last: NonZeroUsize,
    /// Those of steps that are multiples of it; 0 for none.
    pub keep_every: u64,
}

/// What a rank does for a save, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// All ranks write their values.
    Write,
    /// All ranks hash their share of the files.
    Hash,
    /// Rank 0 gives the checkpoint its name and removes old ones.
    Publish,
    /// Rank 0 removes what a failed save has left.
    Discard,
}

/// What a task brings back.
#[derive(Debug)]
struct Done {
    staging: Staging,
    snapshot: Snapshot,
    outcome: Result<Option<Published>, checkpoint::Error>,
}

/// What rank 0 has published.
#[derive(Debug)]
pub struct Published {
    /// The checkpoint's folder.
    pub folder: PathBuf,
    /// Why old checkpoints stay, if they do.
    pub not_pruned: Option<checkpoint::Error>,
}

/// This rank's part of a stage.
#[derive(Debug)]
enum Task {
    Running(JoinHandle<Done>),
    Ended(Box<Done>),
}

/// A save under way.
#[derive(Debug)]
struct Save {
    step: u64,
    stage: Stage,
    task: Task,
    since: Instant,
    /// Why this rank's part of an earlier stage failed.
    error: Option<checkpoint::Error>,
}

/// A save that has ended, on all ranks at the same time.
#[derive(Debug)]
pub struct Ended {
    /// The step of the checkpoint.
    pub step: u64,
    /// How long it took since the values were copied.
    pub seconds: f64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a save.
#[derive(Debug)]
pub enum Outcome {
    /// There is a checkpoint; rank 0 has its folder.
    Saved(Option<Published>),
    /// There is none, and what was there before is as it was; with the reason on ranks that know it.
    Failed(Option<checkpoint::Error>),
}

/// One rank's side of all saves of a run, one at a time.
#[derive(Debug)]
pub struct Saver {
    runtime: Runtime,
    run_folder: PathBuf,
    rank: usize,
    degree: usize,
    retention: Retention,
    save: Option<Save>,
    /// The memory of the last snapshot, for the next.
    buffer: Vec<u8>,
    buffer_bytes: u64,
}

impl Saver {
    /// A saver for `rank` of `degree`, without a save.
    ///
    /// # Errors
    /// If the system refuses a runtime.
    pub fn new(
        run_folder: &Path,
        (rank, degree): (usize, usize),
        retention: Retention,
    ) -> std::io::Result<Self> {
        // Its blocking threads alone are used, and those run by themselves.
        let runtime = Builder::new_current_thread().max_blocking_threads(1).build()?;
        let run_folder = run_folder.to_path_buf();
        let (save, buffer, buffer_bytes) = (None, Vec::new(), 0);
        Ok(Self { runtime, run_folder, rank, degree, retention, save, buffer, buffer_bytes })
    }

    /// The memory for the next snapshot.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    /// Bytes of host memory that snapshots take, between saves too.
    pub fn buffer_bytes(&self) -> u64 {
        self.buffer_bytes
    }

    /// Whether a save is under way.
    pub fn is_saving(&self) -> bool {
        self.save.is_some()
    }

    /// Begins a save, on every rank at the same step; rank 0 brings the files that are no tensors.
    /// None may be under way.
    pub fn begin(
        &mut self,
        blueprint: Arc<Blueprint>,
        snapshot: Snapshot,
        small_files: Option<SmallFiles>,
    ) {
        assert!(self.save.is_none(), "one save at a time");
        self.buffer_bytes = snapshot.capacity_bytes() as u64;
        let place = (self.rank, self.degree);
        let (step, since) = (blueprint.step(), Instant::now());
        let mut staging = Staging::new(&self.run_folder, blueprint, place, small_files);
        let task = Task::Running(self.runtime.spawn_blocking(move || {
            let outcome = staging.write(&snapshot).map(|()| None);
            Done { staging, snapshot, outcome }
        }));
        self.save = Some(Save { step, stage: Stage::Write, task, since, error: None });
    }

    /// What this rank has to tell the others: whether its part of the present stage is done.
    pub fn counts(&mut self) -> SaveCounts {
        let Some(save) = &mut self.save else { return SaveCounts::default() };
        match save.task.poll(&self.runtime) {
            None => SaveCounts::default(),
            Some(done) => SaveCounts { done: 1, failed: u64::from(done.outcome.is_err()) },
        }
    }

    /// Hears how far all ranks are, the same on all of them, and begins the next stage when all are
    /// done with this one. Returns the save's end, if it is that.
    pub fn hear(&mut self, all: SaveCounts) -> Option<Ended> {
        if all.done < self.degree as u64 || self.save.is_none() {
            return None;
        }
        let Save { step, stage, task, since, error } = self.save.take()?;
        let Done { staging, snapshot, outcome } = task.join(&self.runtime);
        let (published, error) = match outcome {
            Ok(published) => (published, error),
            Err(error) => (None, Some(error)),
        };
        let next = match stage {
            Stage::Write | Stage::Hash | Stage::Publish if all.failed > 0 => Stage::Discard,
            Stage::Write => Stage::Hash,
            Stage::Hash => Stage::Publish,
            Stage::Publish | Stage::Discard => {
                self.buffer = snapshot.into_buffer();
                let outcome = match stage {
                    Stage::Publish => Outcome::Saved(published),
                    _ => Outcome::Failed(error),
                };
                return Some(Ended { step, seconds: since.elapsed().as_secs_f64(), outcome });
            }
        };
        let task = self.task(next, staging, snapshot);
        self.save = Some(Save { step, stage: next, task, since, error });
        None
    }

    /// Waits until no save is under way; returns the end of the one that was.
    ///
    /// # Errors
    /// If a collective fails.
    ///
    /// # Collectives
    /// One all-reduce for each stage that is left: every rank must call it after the same step.
    pub fn drain(
        &mut self,
        collective: &dyn Collective,
    ) -> Result<Option<Ended>, grove_parallel::Error> {
        while let Some(save) = &mut self.save {
            save.task.wait(&self.runtime);
            let all = self.counts().over_ranks(collective)?;
            if let Some(ended) = self.hear(all) {
                return Ok(Some(ended));
            }
        }
        Ok(None)
    }

    /// This rank's part of a stage after the first.
    fn task(&self, stage: Stage, staging: Staging, snapshot: Snapshot) -> Task {
        let ended = |staging, snapshot| {
            Task::Ended(Box::new(Done { staging, snapshot, outcome: Ok(None) }))
        };
        if self.rank > 0 && stage != Stage::Hash {
            return ended(staging, snapshot);
        }
        let (retention, run_folder) = (self.retention, self.run_folder.clone());
        Task::Running(self.runtime.spawn_blocking(move || {
            let outcome = match stage {
                Stage::Write => unreachable!("a save begins with it"),
                Stage::Hash => staging.hash().map(|()| None),
                Stage::Publish => staging.publish().map(|folder| {
                    let Retention { keep_last, keep_every } = retention;
                    let not_pruned = prune(&run_folder, keep_last, keep_every).err();
                    Some(Published { folder, not_pruned })
                }),
                Stage::Discard => {
                    staging.discard();
                    Ok(None)
                }
            };
            Done { staging, snapshot, outcome }
        }))
    }
}

impl Task {
    /// What it brought back, if it has ended.
    fn poll(&mut self, runtime: &Runtime) -> Option<&Done> {
        if let Self::Running(handle) = self
            && handle.is_finished()
        {
            self.wait(runtime);
        }
        match self {
            Self::Running(_) => None,
            Self::Ended(done) => Some(done),
        }
    }

    /// Waits for its end.
    fn wait(&mut self, runtime: &Runtime) {
        if let Self::Running(handle) = self {
            let done = match runtime.block_on(handle) {
                Ok(done) => done,
                // Nobody cancels it, so it has panicked: that is told where the run can tell it.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            *self = Self::Ended(Box::new(done));
        }
    }

    fn join(mut self, runtime: &Runtime) -> Done {
        self.wait(runtime);
        match self {
            Self::Ended(done) => *done,
            Self::Running(_) => unreachable!("it was waited for"),
        }
    }
}
