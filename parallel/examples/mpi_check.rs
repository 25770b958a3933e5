//! Checks the MPI collective on the ranks of a run, and measures it.
//!
//! `mpirun -n 3 mpi_check operations` exits with a failure unless every operation gives on every
//! rank what a computation by hand gives, bit for bit. `mismatch`, `abort` and `panic` fail on
//! purpose, each in its way. `bench` and `bench-checked` print the time of large and small calls.

use std::{error::Error, process::ExitCode, time::Instant};

use grove_parallel::{
    Collective, Handle, Launch, Reduction, collective::MpiCollective, connect, launch::Launcher,
};
use tch::{Device, Kind, Tensor};

type Outcome = Result<(), Box<dyn Error>>;

/// Elements on both sides of the small path, of one piece, and of several pieces a rank.
const COUNTS: [usize; 5] = [1, 1000, 5003, 200_001, 1_500_007];
/// The counts that dtypes other than f32 are tried with: the small path and the long one.
const FEW_COUNTS: [usize; 2] = [1000, 200_001];
const REDUCED: [Kind; 4] = [Kind::Float, Kind::Double, Kind::Int, Kind::Int64];
const MOVED: [Kind; 6] =
    [Kind::Float, Kind::Double, Kind::Int, Kind::Int64, Kind::BFloat16, Kind::Uint8];
const REDUCTIONS: [Reduction; 4] =
    [Reduction::Sum, Reduction::TreeSum, Reduction::Max, Reduction::Min];

fn main() -> ExitCode {
    let mode = std::env::args().nth(1).unwrap_or_default();
    match run(&mode) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mpi_check {mode}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mode: &str) -> Outcome {
    let launch = Launch::from_environment()?;
    if launch.launcher == Launcher::Alone {
        return Err("start it with mpirun -n 2 or more".into());
    }
    if mode == "bench" || mode == "bench-checked" {
        return bench(mode == "bench-checked");
    }
    let ranks = connect(&launch, true)?;
    match mode {
        "operations" => operations(&*ranks),
        "mismatch" => {
            let count = if ranks.rank() == 2 { 5 } else { 4 };
            let value = Tensor::zeros([count], (Kind::Float, Device::Cpu));
            Ok(ranks.all_reduce(&value, Reduction::Sum, "loss")?.wait()?)
        }
        "abort" | "panic" => {
            if ranks.rank() == 1 {
                assert!(mode == "abort", "rank 1 panics");
                eprintln!("rank 1 gives up");
                ranks.abort(3);
            }
            Ok(ranks.barrier("never")?.wait()?)
        }
        _ => Err("expected operations, mismatch, abort, panic, bench or bench-checked".into()),
    }
}

/// What `rank` brings: positive and negative numbers whose float sum depends on the order.
fn brought(rank: usize, count: usize, kind: Kind) -> Tensor {
    let index = Tensor::arange(count as i64, (Kind::Int64, Device::Cpu));
    let mixed = (index * 7919 + (rank as i64 + 1) * 104_729).remainder(1009) - 504;
    match kind {
        Kind::Float | Kind::Double => {
            let magnitude = ((rank * 5) % 8) as f64;
            (mixed.to_kind(Kind::Double) * 10f64.powf(magnitude) / 3.0).to_kind(kind)
        }
        Kind::Uint8 => mixed.remainder(256).to_kind(kind),
        _ => mixed.to_kind(kind),
    }
}

/// The reduction by libtorch, one pair after another.
fn reduced(reduction: Reduction, contributions: &[Tensor]) -> Tensor {
    let mut level: Vec<Tensor> = contributions.iter().map(Tensor::shallow_clone).collect();
    if reduction == Reduction::TreeSum {
        while level.len() > 1 {
            let pairs = level.chunks(2);
            level = pairs
                .map(|pair| match pair {
                    [left, right] => left + right,
                    odd => odd[0].shallow_clone(),
                })
                .collect();
        }
    }
    let pair = |left: Tensor, right: Tensor| match reduction {
        Reduction::Max => left.maximum(&right),
        Reduction::Min => left.minimum(&right),
        Reduction::Sum | Reduction::TreeSum => left + right,
    };
    level.into_iter().reduce(pair).expect("there is at least one rank")
}

fn same(found: &Tensor, expected: &Tensor, what: &str) -> Outcome {
    if found.equal(expected) { Ok(()) } else { Err(format!("{what}: wrong result").into()) }
}

fn operations(ranks: &dyn Collective) -> Outcome {
    for count in COUNTS {
        let tried = |kind: &Kind| *kind == Kind::Float || FEW_COUNTS.contains(&count);
        for kind in REDUCED.into_iter().filter(tried) {
            reductions(ranks, count, kind)?;
        }
        for kind in MOVED.into_iter().filter(tried) {
            movements(ranks, count, kind)?;
        }
    }
    ranks.barrier("end")?.wait()?;
    let totals = ranks.ledger().take_step();
    if !ranks.ledger().in_flight().is_empty() || totals.exposed_seconds <= 0.0 {
        return Err("the ledger does not add up".into());
    }
    if ranks.rank() == 0 {
        eprintln!("{} ranks: all operations agree", ranks.degree());
    }
    Ok(())
}

fn reductions(ranks: &dyn Collective, count: usize, kind: Kind) -> Outcome {
    let (rank, degree) = (ranks.rank(), ranks.degree());
    let all: Vec<Tensor> = (0..degree).map(|r| brought(r, count * degree, kind)).collect();
    let part = |whole: &Tensor| whole.narrow(0, (rank * count) as i64, count as i64);
    for reduction in REDUCTIONS {
        let what = format!("{reduction:?} of {count} {kind:?} on rank {rank} of {degree}");
        let whole = all[rank].narrow(0, 0, count as i64).copy();
        let parts: Vec<Tensor> = all.iter().map(|t| t.narrow(0, 0, count as i64)).collect();
        let input = all[rank].copy();
        let output = Tensor::zeros([count as i64], (kind, Device::Cpu));
        let in_place = all[rank].copy();
        // All three are under way before the first is waited for.
        let first = ranks.all_reduce(&whole, reduction, "whole")?;
        let second = ranks.reduce_scatter(&input, &output, reduction, "apart")?;
        let third = ranks.reduce_scatter(&in_place, &part(&in_place), reduction, "inside")?;
        first.wait()?;
        second.wait()?;
        third.wait()?;
        same(&whole, &reduced(reduction, &parts), &format!("all_reduce {what}"))?;
        let expected = part(&reduced(reduction, &all));
        same(&output, &expected, &format!("reduce_scatter {what}"))?;
        same(&part(&in_place), &expected, &format!("reduce_scatter inside {what}"))?;
        same(&input, &all[rank], &format!("reduce_scatter's input {what}"))?;
    }
    Ok(())
}

fn movements(ranks: &dyn Collective, count: usize, kind: Kind) -> Outcome {
    let (rank, degree) = (ranks.rank(), ranks.degree());
    let what = format!("{count} {kind:?} on rank {rank} of {degree}");
    let part = |whole: &Tensor, index: usize| whole.narrow(0, (index * count) as i64, count as i64);
    let zeros = || Tensor::zeros([(count * degree) as i64], (kind, Device::Cpu));
    let shards: Vec<Tensor> = (0..degree).map(|r| brought(r, count, kind)).collect();

    let (apart, inside) = (zeros(), zeros());
    part(&inside, rank).copy_(&shards[rank]);
    let first = ranks.all_gather(&shards[rank], &apart, "apart")?;
    ranks.all_gather(&part(&inside, rank), &inside, "inside")?.wait()?;
    first.wait()?;
    let expected = Tensor::cat(&shards, 0);
    same(&apart, &expected, &format!("all_gather {what}"))?;
    same(&inside, &expected, &format!("all_gather inside {what}"))?;

    for root in 0..degree {
        let given = shards[rank].copy();
        ranks.broadcast(&given, root, "given")?.wait()?;
        same(&given, &shards[root], &format!("broadcast from {root} {what}"))?;
    }

    let sent: Vec<Tensor> = (0..degree).map(|r| brought(r, count * degree, kind)).collect();
    let received = zeros();
    ranks.all_to_all(&sent[rank], &received, "swap")?.wait()?;
    let expected: Vec<Tensor> = sent.iter().map(|whole| part(whole, rank)).collect();
    same(&received, &Tensor::cat(&expected, 0), &format!("all_to_all {what}"))
}

/// Prints the shortest of several times of one call and its wait.
fn fastest(
    ranks: &dyn Collective,
    what: &str,
    repeats: usize,
    call: impl Fn() -> grove_parallel::Result<Handle>,
) -> Outcome {
    let mut fastest_seconds = f64::INFINITY;
    for _ in 0..repeats {
        ranks.barrier("start")?.wait()?;
        let start = Instant::now();
        call()?.wait()?;
        fastest_seconds = fastest_seconds.min(start.elapsed().as_secs_f64());
    }
    if ranks.rank() == 0 {
        eprintln!("{what}: {:.3} ms on {} ranks", fastest_seconds * 1e3, ranks.degree());
    }
    Ok(())
}

/// Times calls on 64 MiB of f32, and the latency of the smallest one with and without the check.
fn bench(check: bool) -> Outcome {
    let ranks = MpiCollective::connect(check)?;
    let part_numel = (16 << 20) / ranks.degree() as i64;
    let zeros = |numel: i64| Tensor::zeros([numel], (Kind::Float, Device::Cpu));
    let whole = zeros(part_numel * ranks.degree() as i64);
    let (other, part, one) = (whole.copy(), zeros(part_numel), zeros(1));
    let sum = Reduction::Sum;
    fastest(&ranks, "all_reduce 64 MiB", 20, || ranks.all_reduce(&whole, sum, "b"))?;
    fastest(&ranks, "reduce_scatter 64 MiB", 20, || ranks.reduce_scatter(&whole, &part, sum, "b"))?;
    fastest(&ranks, "all_gather 64 MiB", 20, || ranks.all_gather(&part, &whole, "b"))?;
    fastest(&ranks, "all_to_all 64 MiB", 20, || ranks.all_to_all(&whole, &other, "b"))?;
    fastest(&ranks, "broadcast 64 MiB", 20, || ranks.broadcast(&whole, 0, "b"))?;
    fastest(&ranks, "all_reduce 4 B", 500, || ranks.all_reduce(&one, sum, "b"))
}
