//! `grove train` with a fault in one rank, for `scripts/inject` and `tests/watchdog.rs`.
//!
//! Usage: inject FAULT RANK CALL train FILE [--set KEY=VALUE ...]
//!
//! The rank goes wrong at its call number CALL of a collective: the program itself knows nothing of
//! faults. FAULT is one of
//! - `panic`, `exit`: the rank ends, by a panic or by leaving;
//! - `branch`: it makes another call than the others, as if it had taken another branch;
//! - `shape`: it makes the call with another number of elements;
//! - `spin`: its training thread goes round in circles;
//! - `data`: its prefetching thread is held up for good, so that it waits for data.
#![allow(unsafe_code, reason = "a signal handler that holds up a thread")]

use std::cell::Cell;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use grove::cli::{Cli, Command};
use grove::job::Job;
use grove_parallel::collective::{Ledger, Request};
use grove_parallel::{Collective, Handle, Reduction};
use tch::{Device, Kind, Tensor};

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Panic,
    Exit,
    Branch,
    Shape,
    Spin,
    Data,
}

/// A collective that goes wrong at one call.
struct Faulty {
    inner: Box<dyn Collective>,
    fault: Fault,
    at_call: u64,
    calls: Cell<u64>,
}

impl Faulty {
    fn go_wrong(&self) {
        match self.fault {
            Fault::Panic => panic!("injected"),
            Fault::Exit => std::process::exit(3),
            // Waiting for it is the point: the others are in another call.
            Fault::Branch => drop(self.inner.barrier("another branch")),
            Fault::Shape => {
                let tensor = Tensor::zeros([12_345], (Kind::Float, Device::Cpu));
                drop(self.inner.all_reduce(&tensor, Reduction::Sum, "another shape"));
            }
            Fault::Spin => loop {
                std::hint::spin_loop();
            },
            Fault::Data => hold_up_prefetching(),
        }
    }
}

impl Collective for Faulty {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn degree(&self) -> usize {
        self.inner.degree()
    }

    fn ledger(&self) -> &Ledger {
        self.inner.ledger()
    }

    fn submit(&self, request: Request) -> grove_parallel::Result<Handle> {
        let call = self.calls.replace(self.calls.get() + 1);
        if call == self.at_call {
            self.go_wrong();
        }
        self.inner.submit(request)
    }

    fn abort(&self, code: i32) {
        self.inner.abort(code);
    }

    fn group(&self, ranks: &[usize], name: &str) -> grove_parallel::Result<Box<dyn Collective>> {
        self.inner.group(ranks, name)
    }
}

/// Sends the prefetching thread a signal whose handler never returns.
fn hold_up_prefetching() {
    extern "C" fn sleep_for_good(_: libc::c_int) {
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    let handler = sleep_for_good as extern "C" fn(libc::c_int);
    // SAFETY: the handler only sleeps, which is safe in a signal handler, and nobody else uses this
    // signal.
    unsafe { libc::signal(libc::SIGURG, handler as libc::sighandler_t) };
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux").flatten();
    for thread in threads {
        let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        let tid: Option<i32> = thread.file_name().to_str().and_then(|name| name.parse().ok());
        if let (true, Some(tid)) = (name.starts_with("grove-prefetch"), tid) {
            // SAFETY: a system call on integers; the thread is of this process, and alive or gone.
            unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGURG);
            }
        }
    }
}

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().collect();
    let [program, fault, rank, call, rest @ ..] = arguments.as_slice() else {
        bail!("usage: inject FAULT RANK CALL train FILE [--set KEY=VALUE ...]");
    };
    let fault = match fault.as_str() {
        "panic" => Fault::Panic,
        "exit" => Fault::Exit,
        "branch" => Fault::Branch,
        "shape" => Fault::Shape,
        "spin" => Fault::Spin,
        "data" => Fault::Data,
        other => bail!("{other} is no fault: panic, exit, branch, shape, spin or data"),
    };
    let (rank, at_call): (usize, u64) = (rank.parse()?, call.parse().context("a call's number")?);
    let cli = Cli::parse_from([std::slice::from_ref(program), rest].concat());
    let Command::Train(command) = &cli.command else { bail!("only `train` can go wrong") };
    tch::set_num_interop_threads(1);
    let _no_graph = tch::no_grad_guard();
    let mut job = match Job::start(|| command.plan()) {
        Ok(job) => job,
        Err(code) => return Ok(code),
    };
    if job.launch.rank == rank {
        let calls = Cell::new(0);
        job.collective = Box::new(Faulty { inner: job.collective, fault, at_call, calls });
    }
    Ok(job.run())
}
