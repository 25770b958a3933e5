//! Checks the MPI collective on the ranks of a run, and measures it.
//!
//! `mpirun -n 3 mpi_check operations` exits with a failure unless every operation gives on every
//! rank what a computation by hand gives, bit for bit, among all ranks and in groups of them.
//! `mismatch`, `group-mismatch`, `abort` and `panic` fail on purpose, each in its way. `bench` and `bench-checked` print the time of large and small calls.

use std::{error::Error, process::ExitCode, time::Instant};

use grove_parallel::{
    Collective, Handle, Launch, Onto, Reduction, collective::MpiCollective, connect,
    launch::Launcher,
};
use tch::{Device, Kind, Tensor};

type Outcome = Result<(), Box<dyn Error>>;

/// Elements on both sides of the small path, of one piece, and of several pieces a rank.
const COUNTS: [usize; 5] = [1, 1000, 5003, 200_001, 1_500_007];
/// The counts that groups, and dtypes other than f32, are tried with: the small path and the long
/// one.
const FEW_COUNTS: [usize; 2] = [1000, 200_001];
const REDUCED: [Kind; 4] = [Kind::Float, Kind::Double, Kind::Int, Kind::Int64];
const MOVED: [Kind; 6] =
    [Kind::Float, Kind::Double, Kind::Int, Kind::Int64, Kind::BFloat16, Kind::Uint8];
/// Inputs and outputs of ordered reduce-scatters.
const ORDERED: [(Kind, Kind); 3] =
    [(Kind::BFloat16, Kind::Float), (Kind::Float, Kind::Float), (Kind::Double, Kind::Double)];
const REDUCTIONS: [Reduction; 4] =
    [Reduction::Sum, Reduction::TreeSum, Reduction::Max, Reduction::Min];

fn main() -> ExitCode {
    let mode = std::env::args().nth(1).unwrap_or_default();
    match run(&mode) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // In one write, as all ranks print at once.
            let line = format!("mpi_check {mode}: {error}\n");
            eprint!("{line}");
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
        "group-mismatch" => {
            let first = ranks.rank() / 2 * 2;
            let pair = ranks.group(&[first, first + 1], "pairs")?;
            let name = if ranks.rank() == 3 { "odd" } else { "pair" };
            Ok(pair.barrier(name)?.wait()?)
        }
        "abort" | "panic" => {
            if ranks.rank() == 1 {
                assert!(mode == "abort", "rank 1 panics");
                eprintln!("rank 1 gives up");
                ranks.abort(3);
            }
            Ok(ranks.barrier("never")?.wait()?)
        }
        _ => Err("expected operations, mismatch, group-mismatch, abort, panic, bench or \
                  bench-checked"
            .into()),
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

/// Some ranks, and the first of the numbers by which they bring data of their own.
struct Members<'a> {
    ranks: &'a dyn Collective,
    first: usize,
}

impl Members<'_> {
    /// What each of them brings.
    fn bring(&self, count: usize, kind: Kind) -> Vec<Tensor> {
        (0..self.ranks.degree()).map(|rank| brought(self.first + rank, count, kind)).collect()
    }
}

fn operations(ranks: &dyn Collective) -> Outcome {
    let (rank, degree) = (ranks.rank(), ranks.degree());
    // For 4 ranks a grid: rows of neighbors, and columns.
    let half = degree.div_ceil(2);
    let row: Vec<usize> = (0..degree).filter(|other| other / half == rank / half).collect();
    let column: Vec<usize> = (0..degree).filter(|other| other % half == rank % half).collect();
    let (rows, columns) = (ranks.group(&row, "rows")?, ranks.group(&column, "columns")?);
    let members = [
        Members { ranks, first: 0 },
        Members { ranks: &*rows, first: 10 + rank / half },
        Members { ranks: &*columns, first: 20 + rank % half },
    ];
    for (count, members) in COUNTS.iter().flat_map(|count| members.iter().map(move |m| (*count, m)))
    {
        if members.first > 0 && !FEW_COUNTS.contains(&count) {
            continue;
        }
        let tried = |kind: &Kind| *kind == Kind::Float || FEW_COUNTS.contains(&count);
        for kind in REDUCED.into_iter().filter(tried) {
            reductions(members, count, kind)?;
        }
        for kind in MOVED.into_iter().filter(tried) {
            movements(members, count, kind)?;
        }
        for kinds in ORDERED {
            ordered(members, count, kinds)?;
        }
    }
    queued_together(ranks, &*rows)?;
    ranks.barrier("end")?.wait()?;
    // Groups may go before the whole or after it.
    drop(columns);
    let totals = ranks.ledger().take_step();
    if !ranks.ledger().in_flight().is_empty() || totals.exposed_seconds <= 0.0 {
        return Err("the ledger does not add up".into());
    }
    if ranks.rank() == 0 {
        eprintln!("{} ranks: all operations agree", ranks.degree());
    }
    Ok(())
}

/// Calls of a group take what those of the whole bring, before anyone has waited.
fn queued_together(ranks: &dyn Collective, group: &dyn Collective) -> Outcome {
    let value = Tensor::from_slice(&[1i64]);
    let calls = [ranks, group, ranks].map(|by| by.all_reduce(&value, Reduction::Sum, "next"));
    for call in calls {
        call?.wait()?;
    }
    // The whole sums the degrees of all members' groups.
    let degrees = Tensor::from_slice(&[group.degree() as i64]);
    ranks.all_reduce(&degrees, Reduction::Sum, "degrees")?.wait()?;
    same(&value, &(degrees * ranks.degree() as i64), "calls queued together")
}

/// The sums of the whole and of each rank, bit for bit, twice: onto nothing, then onto that.
fn ordered(members: &Members<'_>, count: usize, (from, to): (Kind, Kind)) -> Outcome {
    let (rank, degree) = (members.ranks.rank(), members.ranks.degree());
    let all = members.bring(count * degree, from);
    let input = all[rank].copy();
    let output = Tensor::full([count as i64], f64::NAN, (to, Device::Cpu));
    let add = |onto| members.ranks.ordered_reduce_scatter(&input, &output, onto, "terms");
    let (first, second) = (add(Onto::Nothing)?, add(Onto::Output)?);
    first.wait()?;
    second.wait()?;
    let terms = all.iter().map(|t| t.narrow(0, (rank * count) as i64, count as i64).to_kind(to));
    let terms: Vec<Tensor> = terms.collect();
    let mut expected = terms[0].copy();
    for term in terms[1..].iter().chain(&terms) {
        expected += term;
    }
    let bits = if to == Kind::Double { Kind::Int64 } else { Kind::Int };
    let what = format!("{count} {from:?} onto {to:?} on rank {rank} of {degree}");
    let (found, expected) = (output.view_dtype(bits), expected.view_dtype(bits));
    same(&found, &expected, &format!("ordered_reduce_scatter {what}"))?;
    same(&input, &all[rank], &format!("ordered_reduce_scatter's input {what}"))
}

fn reductions(members: &Members<'_>, count: usize, kind: Kind) -> Outcome {
    let ranks = members.ranks;
    let (rank, degree) = (ranks.rank(), ranks.degree());
    let all = members.bring(count * degree, kind);
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

fn movements(members: &Members<'_>, count: usize, kind: Kind) -> Outcome {
    let ranks = members.ranks;
    let (rank, degree) = (ranks.rank(), ranks.degree());
    let what = format!("{count} {kind:?} on rank {rank} of {degree}");
    let part = |whole: &Tensor, index: usize| whole.narrow(0, (index * count) as i64, count as i64);
    let zeros = || Tensor::zeros([(count * degree) as i64], (kind, Device::Cpu));
    let shards = members.bring(count, kind);

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

    let sent = members.bring(count * degree, kind);
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
    let (wide, wide_part) = (whole.to_kind(Kind::Int64), part.to_kind(Kind::Int64));
    fastest(&ranks, "reduce_scatter 16 Mi Int64", 20, || {
        ranks.reduce_scatter(&wide, &wide_part, sum, "b")
    })?;
    for kind in [Kind::Float, Kind::BFloat16] {
        let input = whole.to_kind(kind);
        let what = format!("ordered_reduce_scatter 16 Mi {kind:?}");
        let onto = Onto::Output;
        fastest(&ranks, &what, 20, || ranks.ordered_reduce_scatter(&input, &part, onto, "b"))?;
    }
    fastest(&ranks, "all_gather 64 MiB", 20, || ranks.all_gather(&part, &whole, "b"))?;
    fastest(&ranks, "all_to_all 64 MiB", 20, || ranks.all_to_all(&whole, &other, "b"))?;
    fastest(&ranks, "broadcast 64 MiB", 20, || ranks.broadcast(&whole, 0, "b"))?;
    fastest(&ranks, "all_reduce 4 B", 500, || ranks.all_reduce(&one, sum, "b"))
}
