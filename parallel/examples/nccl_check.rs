//! Checks the NCCL collective on the GPUs of this host.
//!
//! `nccl_check` checks one rank on one GPU, `mpirun -n 4 nccl_check` four ranks with a GPU each.
//! It prints a line for each check and exits with a failure if one fails. Where there is no GPU it
//! says why, and that it skipped the checks, and succeeds.
#![allow(unsafe_code, reason = "libtorch's CUDA library is opened by hand")]

use std::{error::Error, process::ExitCode};

use grove_parallel::{
    Collective, Launch, Reduction,
    collective::{NcclCollective, Onto},
    connect,
    error::GpuError,
};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Device, Kind, Tensor};

type Outcome = Result<(), Box<dyn Error>>;

/// Elements of a rank's part: one, odd numbers, and more than the kernels have threads.
const COUNTS: [i64; 4] = [1, 1000, 5003, 1_500_007];
const REDUCED: [Kind; 4] = [Kind::Float, Kind::Double, Kind::Int, Kind::Int64];
const MOVED: [Kind; 6] =
    [Kind::Float, Kind::Double, Kind::Int, Kind::Int64, Kind::BFloat16, Kind::Uint8];
const REDUCTIONS: [Reduction; 4] =
    [Reduction::Sum, Reduction::TreeSum, Reduction::Max, Reduction::Min];

/// NCCL adds floats in an order of its own. Of at most 16 terms up to 504 in magnitude, each
/// order is within 16 roundings of 2^-24 of the sum of the magnitudes, at most 8064.
const SUM_TOLERANCE: f64 = 16.0 * 8064.0 / 16_777_216.0;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nccl_check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let launch = Launch::from_environment()?;
    let parent = connect(&launch, true)?;
    let (rank, degree) = (parent.rank(), parent.degree());
    let ranks = match NcclCollective::connect(parent, launch.local_rank) {
        Ok(ranks) => ranks,
        Err(refused) => {
            return match refused.error {
                grove_parallel::Error::Gpu(
                    error @ (GpuError::Library { .. }
                    | GpuError::Missing { .. }
                    | GpuError::Peer { .. }),
                ) => {
                    eprintln!("rank {rank}: skipped: {error}");
                    Ok(())
                }
                error => {
                    eprintln!("rank {rank}: {error}");
                    refused.parent.abort(1);
                    Err("NCCL is there and does not work".into())
                }
            };
        }
    };
    let check = Check { ranks: &ranks, device: Device::Cuda(launch.local_rank), rank, degree };
    let outcome = open_cuda().and_then(|()| check.all());
    if let Err(error) = &outcome {
        eprintln!("rank {rank}: FAILED: {error}");
        ranks.abort(1);
    }
    outcome
}

/// Registers libtorch's CUDA kernels with this process.
fn open_cuda() -> Outcome {
    // SAFETY: its initializers only register kernels with the libtorch that is already loaded.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    std::mem::forget(library.map_err(|error| format!("libtorch has no CUDA: {error}"))?);
    Ok(())
}

struct Check<'a> {
    ranks: &'a NcclCollective,
    device: Device,
    rank: usize,
    degree: usize,
}

impl Check<'_> {
    fn all(&self) -> Outcome {
        for count in COUNTS {
            for kind in REDUCED {
                self.reductions(count, kind)?;
            }
            for kind in MOVED {
                self.movements(count, kind)?;
            }
            for kinds in [
                (Kind::BFloat16, Kind::Float),
                (Kind::Float, Kind::Float),
                (Kind::Double, Kind::Double),
            ] {
                self.ordered(count, kinds)?;
            }
        }
        self.passed("reductions, movements and ordered sums of all dtypes");
        self.nan()?;
        self.asynchronous()?;
        self.chained()?;
        self.host()?;
        self.refusals()?;
        self.groups()?;
        self.ledger()
    }

    fn passed(&self, what: &str) {
        if self.rank == 0 {
            eprintln!("ok: {what} ({} ranks)", self.degree);
        }
    }

    /// What `rank` brings, as `mpi_check` has it, but without a large spread: numbers up to 504
    /// in magnitude, made on the host so that all ranks know them.
    fn brought(&self, rank: usize, count: i64, kind: Kind) -> Tensor {
        let index = Tensor::arange(count, (Kind::Int64, Device::Cpu));
        let mixed = (index * 7919 + (rank as i64 + 1) * 104_729).remainder(1009) - 504;
        match kind {
            Kind::Float | Kind::Double | Kind::BFloat16 => {
                (mixed.to_kind(Kind::Double) / 3.0).to_kind(kind)
            }
            Kind::Uint8 => mixed.remainder(256).to_kind(kind),
            _ => mixed.to_kind(kind),
        }
    }

    fn on_gpu(&self, tensor: &Tensor) -> Tensor {
        tensor.to_device(self.device)
    }

    fn zeros(&self, count: i64, kind: Kind) -> Tensor {
        Tensor::zeros([count], (kind, self.device))
    }

    fn part(&self, whole: &Tensor, part: usize) -> Tensor {
        let count = whole.numel() as i64 / self.degree as i64;
        whole.narrow(0, part as i64 * count, count)
    }

    fn reductions(&self, count: i64, kind: Kind) -> Outcome {
        let all: Vec<Tensor> = (0..self.degree)
            .map(|rank| self.brought(rank, count * self.degree as i64, kind))
            .collect();
        for reduction in REDUCTIONS {
            let what = format!("{reduction:?} of {count} {kind:?}");
            let expected = reduced(reduction, &all);
            let own = self.on_gpu(&all[self.rank]);
            let (whole, inside) = (own.copy(), own.copy());
            let output = self.zeros(count, kind);
            // All three are under way before the first is waited for.
            let first = self.ranks.all_reduce(&whole, reduction, "whole")?;
            let second = self.ranks.reduce_scatter(&own, &output, reduction, "apart")?;
            let own_part = self.part(&inside, self.rank);
            let third = self.ranks.reduce_scatter(&inside, &own_part, reduction, "inside")?;
            first.wait()?;
            second.wait()?;
            third.wait()?;
            let tolerance = tolerance(reduction, kind);
            near(&whole, &expected, tolerance, &format!("all_reduce {what}"))?;
            let expected = self.part(&expected, self.rank);
            near(&output, &expected, tolerance, &format!("reduce_scatter {what}"))?;
            near(&own_part, &expected, tolerance, &format!("reduce_scatter inside {what}"))?;
            same(&own, &all[self.rank], &format!("reduce_scatter's input {what}"))?;
        }
        Ok(())
    }

    fn movements(&self, count: i64, kind: Kind) -> Outcome {
        let what = format!("{count} {kind:?}");
        let degree = self.degree as i64;
        let shards: Vec<Tensor> =
            (0..self.degree).map(|rank| self.brought(rank, count, kind)).collect();
        let (apart, inside) = (self.zeros(count * degree, kind), self.zeros(count * degree, kind));
        self.part(&inside, self.rank).copy_(&shards[self.rank]);
        let own = self.on_gpu(&shards[self.rank]);
        let first = self.ranks.all_gather(&own, &apart, "apart")?;
        self.ranks.all_gather(&self.part(&inside, self.rank), &inside, "inside")?.wait()?;
        first.wait()?;
        let expected = Tensor::cat(&shards, 0);
        same(&apart, &expected, &format!("all_gather {what}"))?;
        same(&inside, &expected, &format!("all_gather inside {what}"))?;

        for (root, expected) in shards.iter().enumerate() {
            let given = own.copy();
            self.ranks.broadcast(&given, root, "given")?.wait()?;
            same(&given, expected, &format!("broadcast from {root} {what}"))?;
        }

        let sent: Vec<Tensor> =
            (0..self.degree).map(|rank| self.brought(rank, count * degree, kind)).collect();
        let received = self.zeros(count * degree, kind);
        self.ranks.all_to_all(&self.on_gpu(&sent[self.rank]), &received, "swap")?.wait()?;
        let expected: Vec<Tensor> = sent.iter().map(|whole| self.part(whole, self.rank)).collect();
        same(&received, &Tensor::cat(&expected, 0), &format!("all_to_all {what}"))
    }

    /// The chain of additions in rank order, bit for bit.
    fn ordered(&self, count: i64, (kind, sum_kind): (Kind, Kind)) -> Outcome {
        let all: Vec<Tensor> = (0..self.degree)
            .map(|rank| self.brought(rank, count * self.degree as i64, kind))
            .collect();
        let terms = all.iter().map(|whole| self.part(whole, self.rank).to_kind(sum_kind));
        let base = self.brought(self.degree, count, sum_kind) * 1e-3;
        let onto_output = terms.clone().fold(base.copy(), |sum, term| sum + term);
        let onto_nothing = terms.reduce(|sum, term| sum + term).ok_or("no ranks")?;
        for (onto, expected) in [(Onto::Output, onto_output), (Onto::Nothing, onto_nothing)] {
            let what = format!("ordered_reduce_scatter of {count} {kind:?} onto {onto:?}");
            let (input, output) = (self.on_gpu(&all[self.rank]), self.on_gpu(&base));
            self.ranks.ordered_reduce_scatter(&input, &output, onto, "chain")?.wait()?;
            same(&output, &expected, &what)?;
            same(&input, &all[self.rank], &format!("input of {what}"))?;
        }
        Ok(())
    }

    /// Max and Min are NaN if any contribution is.
    fn nan(&self) -> Outcome {
        for kind in [Kind::Float, Kind::Double] {
            for reduction in [Reduction::Max, Reduction::Min] {
                let values = self.on_gpu(&self.brought(self.rank, 1000, kind));
                if self.rank == self.degree - 1 {
                    let _ = values.narrow(0, 7, 1).fill_(f64::NAN);
                }
                self.ranks.all_reduce(&values, reduction, "nan")?.wait()?;
                let found = values.isnan().to_kind(Kind::Int64);
                let expected = (f64::try_from(found.sum(Kind::Int64))?, found.int64_value(&[7]));
                if expected != (1.0, 1) {
                    return Err(format!("{reduction:?} of {kind:?} loses a NaN").into());
                }
            }
        }
        self.passed("Max and Min keep a NaN");
        Ok(())
    }

    /// A call sees what was queued before it, and what is queued after `wait` sees the call,
    /// while neither blocks the host.
    fn asynchronous(&self) -> Outcome {
        let size = 4096;
        let identity = Tensor::eye(size, (Kind::Float, self.device));
        let mut product = Tensor::ones([size, size], (Kind::Float, self.device));
        for _ in 0..20 {
            product = product.matmul(&identity);
        }
        let handle = self.ranks.all_reduce(&product, Reduction::Sum, "after the products")?;
        // Independent work beside it.
        let beside = identity.matmul(&identity);
        handle.wait()?;
        let read = &product + 0.0;
        let sum = f64::try_from(read.mean(Kind::Double))?;
        let trace = f64::try_from(beside.trace())?;
        if sum != self.degree as f64 || trace != size as f64 {
            return Err(format!("streams are out of order: {sum} and {trace}").into());
        }
        self.passed(
            "a call begins after what was computed before it, and ends before what follows",
        );
        Ok(())
    }

    /// A call may take what the one before it brings, though nobody waited for that one. Memory
    /// that is freed after the wait may be used again at once.
    fn chained(&self) -> Outcome {
        let degree = self.degree as i64;
        for round in 0..50 {
            let count = 100_003;
            let input = Tensor::full([count * degree], round as f64, (Kind::BFloat16, self.device));
            let shard = self.zeros(count, Kind::Float);
            let whole = self.zeros(count * degree, Kind::Float);
            let first = self.ranks.ordered_reduce_scatter(&input, &shard, Onto::Output, "1st")?;
            let second = self.ranks.all_gather(&shard, &whole, "2nd")?;
            let third = self.ranks.all_reduce(&whole, Reduction::Max, "3rd")?;
            third.wait()?;
            second.wait()?;
            first.wait()?;
            drop((input, shard));
            let expected = Tensor::full_like(&whole, (round * degree) as f64);
            same(&whole, &expected, &format!("a chain of calls in round {round}"))?;
        }
        self.passed("calls run in the order in which they were made");
        Ok(())
    }

    /// Tensors on the host and barriers go by the parent.
    fn host(&self) -> Outcome {
        let value = Tensor::from_slice(&[self.rank as f64 + 1.0]);
        self.ranks.all_reduce(&value, Reduction::Sum, "on the host")?.wait()?;
        self.ranks.barrier("on the host")?.wait()?;
        let expected = (self.degree * (self.degree + 1) / 2) as f64;
        if f64::try_from(&value)? != expected {
            return Err(format!("the sum on the host is {value:?}, not {expected}").into());
        }
        self.passed("tensors on the host");
        Ok(())
    }

    fn refusals(&self) -> Outcome {
        let bytes = self.zeros(8, Kind::Uint8);
        if self.ranks.all_reduce(&bytes, Reduction::Sum, "bytes").is_ok() {
            return Err("a sum of bytes is not refused".into());
        }
        let host = Tensor::zeros([8], (Kind::Float, Device::Cpu));
        let gpu = self.zeros(8 * self.degree as i64, Kind::Float);
        if self.ranks.all_gather(&host, &gpu, "mixed").is_ok() {
            return Err("an output on another device is not refused".into());
        }
        self.passed("what does not fit is refused");
        Ok(())
    }

    /// Groups of neighbors, and everyone alone, mixed with calls on the whole.
    fn groups(&self) -> Outcome {
        let first = self.rank / 2 * 2;
        let pair: Vec<usize> = (first..(first + 2).min(self.degree)).collect();
        let neighbors = self.ranks.group(&pair, "neighbors")?;
        let alone = self.ranks.group(&[self.rank], "alone")?;
        let ones = || Tensor::ones([1000], (Kind::Float, self.device));
        let (by_pair, by_all, by_one) = (ones(), ones(), ones());
        let calls = [
            neighbors.all_reduce(&by_pair, Reduction::Sum, "pair")?,
            self.ranks.all_reduce(&by_all, Reduction::Sum, "all")?,
            alone.all_reduce(&by_one, Reduction::Sum, "one")?,
        ];
        for call in calls {
            call.wait()?;
        }
        same(&by_pair, &(ones() * pair.len() as f64), "the sum of neighbors")?;
        same(&by_all, &(ones() * self.degree as f64), "the sum of all beside groups")?;
        same(&by_one, &ones(), "the sum of one")?;
        let host = Tensor::ones([3], (Kind::Int64, Device::Cpu));
        neighbors.all_reduce(&host, Reduction::Sum, "pair on the host")?.wait()?;
        let expected = Tensor::full_like(&host, pair.len() as i64);
        same(&host, &expected, "the sum of neighbors on the host")?;
        drop((neighbors, alone));
        self.ranks.all_reduce(&by_all, Reduction::Max, "after groups")?.wait()?;
        same(&by_all, &(ones() * self.degree as f64), "the whole after its groups")?;
        self.passed("groups");
        Ok(())
    }

    /// Reading the last result made the host wait for the GPU, so all calls are over.
    fn ledger(&self) -> Outcome {
        let totals = self.ranks.ledger().take_step();
        let in_flight = self.ranks.ledger().in_flight();
        if !in_flight.is_empty() || totals.communication_seconds <= 0.0 {
            return Err(format!("the ledger does not add up: {totals:?}, {in_flight:?}").into());
        }
        self.passed(&format!(
            "the ledger: {} calls, {:.3} s of communication, {:.3} s of it waited for",
            totals.calls(),
            totals.communication_seconds,
            totals.exposed_seconds
        ));
        Ok(())
    }
}

/// The reduction by libtorch, in rank order.
fn reduced(reduction: Reduction, contributions: &[Tensor]) -> Tensor {
    let pair = |left: Tensor, right: &Tensor| match reduction {
        Reduction::Max => left.maximum(right),
        Reduction::Min => left.minimum(right),
        Reduction::Sum | Reduction::TreeSum => left + right,
    };
    contributions[1..].iter().fold(contributions[0].copy(), pair)
}

fn tolerance(reduction: Reduction, kind: Kind) -> f64 {
    let sum = matches!(reduction, Reduction::Sum | Reduction::TreeSum);
    if sum && matches!(kind, Kind::Float | Kind::Double) { SUM_TOLERANCE } else { 0.0 }
}

fn same(found: &Tensor, expected: &Tensor, what: &str) -> Outcome {
    if found.to_device(Device::Cpu).equal(&expected.to_device(Device::Cpu)) {
        return Ok(());
    }
    Err(format!("{what}: wrong result").into())
}

fn near(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) -> Outcome {
    let found = found.to_device(Device::Cpu).to_kind(Kind::Double);
    let difference = (found - expected.to_kind(Kind::Double)).abs().max();
    let difference = f64::try_from(difference)?;
    if difference <= tolerance {
        return Ok(());
    }
    Err(format!("{what}: off by {difference}, and {tolerance} is allowed").into())
}
