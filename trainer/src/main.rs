//! The `grove` program: reads the command line, runs a command, and turns errors into exit codes.

use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::Parser;
use grove::cli::{Cli, Command};
use grove::job::{FAILED, Job, REFUSED, complain};

fn main() -> ExitCode {
    let cli = Cli::parse();
    tch::set_num_interop_threads(1);
    let _no_graph = tch::no_grad_guard();
    let out = &mut stdout();
    let done = match &cli.command {
        Command::Train(command) => {
            return match Job::start(|| command.plan()) {
                Ok(job) => job.run(),
                Err(code) => code,
            };
        }
        Command::Plan(command) => {
            command.plan().and_then(|plan| Ok(write!(out, "{}", plan.to_toml())?))
        }
        Command::Tokenize(command) => command.run(out),
        Command::Grow(command) => command.run(out),
        Command::Tokenizer(command) => command.run(out),
        Command::Data(command) => command.run(out),
        Command::Sample(command) => command.run(out),
        Command::Eval(command) => command.run(out),
        Command::Lost(command) => command.run(out),
        Command::Coordcheck(command) => command.run(out),
        Command::Replay(command) => command.run(out),
        Command::Import(command) => command.run(out),
        Command::Export(command) => command.run(out),
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
