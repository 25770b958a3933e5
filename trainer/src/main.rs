//! The `grove` program: reads the command line, runs a command, and turns errors into exit codes.

use std::io::{Write, stderr, stdout};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use grove::backend::{Carrier, carrier};
use grove::cli::{Cli, Command, Train};
use grove::run::Ending;
use grove::signals::{INTERRUPTED, StopRequest};
use grove::{compute_for, run};
use grove_parallel::{Collective, Launch, connect};

/// The exit code of a run that failed.
const FAILED: u8 = 1;
/// The exit code of a command line or config that cannot be carried out.
const REFUSED: u8 = 2;
/// How long ranks other than 0 wait before they leave over an error that every rank finds: the
/// launcher ends all ranks when the first one leaves, and rank 0 should get to say why.
const COURTESY: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let cli = Cli::parse();
    tch::set_num_interop_threads(1);
    let _no_graph = tch::no_grad_guard();
    let out = &mut stdout();
    let done = match &cli.command {
        Command::Train(command) => return train(command),
        Command::Plan(command) => {
            command.plan().and_then(|plan| Ok(write!(out, "{}", plan.to_toml())?))
        }
        Command::Tokenize(command) => command.run(out),
        Command::Grow(command) => command.run(out),
        Command::Sample(command) => command.run(out),
        Command::Eval(command) => command.run(out),
        Command::Lost(command) => command.run(out),
        Command::Coordcheck(command) => command.run(out),
        Command::Ckpt(command) => command.run(out),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(if matches!(cli.command, Command::Plan(_)) { REFUSED } else { FAILED })
        }
    }
}

fn train(command: &Train) -> ExitCode {
    let launch = match Launch::from_environment() {
        Ok(launch) => launch,
        Err(error) => return refuse(0, &error.to_string()),
    };
    let mut plan = match command.configured.plan() {
        Ok(plan) => plan,
        Err(error) => return refuse(launch.rank, &format!("{error:#}")),
    };
    plan.checkpoint.resume |= command.resume;
    if let Err(error) = plan.check_ranks(launch.world_size) {
        return refuse(launch.rank, &error.to_string());
    }
    let stop = match StopRequest::install() {
        Ok(stop) => stop,
        Err(error) => return refuse(launch.rank, &format!("cannot watch for signals: {error}")),
    };
    let collective = match connect(&launch, plan.parallel.check) {
        Ok(collective) => collective,
        Err(error) => return refuse(launch.rank, &error.to_string()),
    };
    let compute = match compute_for(&plan, &launch) {
        Ok(compute) => compute,
        Err(error) => return fail(&launch, &*collective, &error.to_string()),
    };
    let collective = match carrier(&plan, compute.device, &launch, collective) {
        Ok(Carrier { collective, warning }) => {
            if let (Some(warning), 0) = (warning, launch.rank) {
                complain(&warning);
            }
            collective
        }
        Err(refused) => return fail(&launch, &*refused.collective, &refused.error.to_string()),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        run::train(&plan, compute, &*collective, &stop, &launch.hostname)
    }));
    match outcome {
        Ok(Ok(Ending::Finished)) => ExitCode::SUCCESS,
        Ok(Ok(Ending::Interrupted)) => ExitCode::from(INTERRUPTED as u8),
        Ok(Err(error)) => {
            if error.is_common() && launch.rank > 0 {
                std::thread::sleep(COURTESY);
            }
            fail(&launch, &*collective, &format!("{:#}", anyhow::Error::from(error)))
        }
        // The panic's own message has been printed where it happened.
        Err(_) => fail(&launch, &*collective, "a panic, which is a mistake in Grove (see above)"),
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

fn complain(reason: &str) {
    // Where standard error is gone there is nobody left to tell.
    let _ = writeln!(stderr(), "grove: {reason}");
}
