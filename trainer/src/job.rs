//! One rank of a training job, from its launch to its exit code.

use std::io::{Write, stderr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use grove_parallel::{Collective, Launch, connect};

use crate::backend::{Carrier, carrier};
use crate::config::Plan;
use crate::device;
use crate::model::compute::Compute;
use crate::run::{self, Ending};
use crate::signals::{INTERRUPTED, StopRequest};
use crate::watchdog::{Pulse, Watchdog};

/// The exit code of a run that failed.
pub const FAILED: u8 = 1;

/// The exit code of a command line or config that cannot be carried out.
pub const REFUSED: u8 = 2;

/// How long ranks other than 0 wait before they leave over an error that every rank finds: the
/// launcher ends all ranks when the first one leaves, and rank 0 should get to say why.
const COURTESY: Duration = Duration::from_secs(3);

/// One rank of a job that is ready to train.
pub struct Job {
    /// What to train.
    pub plan: Plan,
    /// All ranks.
    pub collective: Box<dyn Collective>,
    /// Who this process is.
    pub launch: Launch,
    compute: Compute,
    stop: StopRequest,
}

impl Job {
    /// Brings this process together with the others. `plan` is read once it is known who is to tell
    /// what is wrong with it.
    ///
    /// # Errors
    /// The exit code, once what is wrong has been told.
    ///
    /// # Collectives
    /// Every rank of the job must start.
    pub fn start(plan: impl FnOnce() -> anyhow::Result<Plan>) -> Result<Self, ExitCode> {
        let launch = Launch::from_environment().map_err(|error| refuse(0, &error.to_string()))?;
        let refused = |reason: String| refuse(launch.rank, &reason);
        let plan = plan().map_err(|error| refused(format!("{error:#}")))?;
        plan.check_ranks(launch.world_size).map_err(|error| refused(error.to_string()))?;
        let stop = StopRequest::install()
            .map_err(|error| refused(format!("cannot watch for signals: {error}")))?;
        let collective =
            connect(&launch, plan.parallel.check).map_err(|error| refused(error.to_string()))?;
        let compute = match device::compute(&plan, &launch) {
            Ok(compute) => compute,
            Err(error) => return Err(fail(&launch, &*collective, &error.to_string())),
        };
        let collective = match carrier(&plan, compute.device, &launch, collective) {
            Ok(Carrier { collective, warning }) => {
                if let (Some(warning), 0) = (warning, launch.rank) {
                    complain(&warning);
                }
                collective
            }
            Err(refused) => {
                return Err(fail(&launch, &*refused.collective, &refused.error.to_string()));
            }
        };
        Ok(Self { plan, collective, launch, compute, stop })
    }

    /// Trains, watched, and turns the outcome into the exit code.
    ///
    /// # Collectives
    /// Every rank must run.
    pub fn run(self) -> ExitCode {
        let Self { plan, collective, launch, compute, stop } = self;
        let pulse = Pulse::default();
        let (dir, host) = (&plan.run.dir, &launch.hostname);
        let watchdog = match Watchdog::start(&plan.watchdog, dir, &*collective, host, &pulse) {
            Ok(watchdog) => watchdog,
            Err(error) => return fail(&launch, &*collective, &error.to_string()),
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            run::train_watched(&plan, compute, &*collective, &stop, (host, &pulse))
        }));
        let (reason, is_common) = match outcome {
            Ok(Ok(Ending::Finished)) => return ExitCode::SUCCESS,
            Ok(Ok(Ending::Interrupted)) => return ExitCode::from(INTERRUPTED as u8),
            Ok(Err(error)) => {
                let is_common = error.is_common();
                (format!("{:#}", anyhow::Error::from(error)), is_common)
            }
            // The panic's own message has been printed where it happened.
            Err(_) => ("a panic, which is a mistake in Grove (see above)".to_owned(), false),
        };
        match watchdog {
            Some(watchdog) if !is_common => watchdog.tell_failure(&reason),
            other => drop(other),
        }
        if is_common && launch.rank > 0 {
            std::thread::sleep(COURTESY);
        }
        fail(&launch, &*collective, &reason)
    }
}

/// Ends this rank and its peers over an error that this rank has found.
fn fail(launch: &Launch, collective: &dyn Collective, reason: &str) -> ExitCode {
    if launch.world_size > 1 {
        complain(&format!("rank {} on {}: {reason}", launch.rank, launch.hostname));
    } else {
        complain(reason);
    }
    collective.abort(i32::from(FAILED));
    ExitCode::from(FAILED)
}

/// Ends this rank over an error that every rank finds by itself, as a rule: rank 0 tells at once,
/// and a rank that is still there a moment later was alone in finding it.
fn refuse(rank: usize, reason: &str) -> ExitCode {
    if rank == 0 {
        complain(reason);
    } else {
        std::thread::sleep(COURTESY);
        complain(&format!("rank {rank}: {reason}"));
    }
    ExitCode::from(REFUSED)
}

/// Says on standard error why a command ends.
pub fn complain(reason: &str) {
    // Where standard error is gone there is nobody left to tell.
    let _ = writeln!(stderr(), "grove: {reason}");
}
