//! Every operation and dtype on 1 to 4 thread ranks against results by hand, and what is refused.

mod groups;
mod ordered;

use std::{sync::Mutex, thread};

use tch::{Device, Kind, Tensor};

use super::*;
use crate::error::Error;

const DEGREES: [usize; 4] = [1, 2, 3, 4];
const REDUCED: [Kind; 4] = [Kind::Float, Kind::Double, Kind::Int, Kind::Int64];
const MOVED: [Kind; 6] =
    [Kind::Float, Kind::Double, Kind::Int, Kind::Int64, Kind::BFloat16, Kind::Uint8];

/// Runs `rank_main` on `degree` ranks; with one rank, on the local collective as well.
fn on_ranks(degree: usize, rank_main: impl Fn(&dyn Collective) + Sync) {
    if degree == 1 {
        rank_main(&LocalCollective::new());
    }
    thread::scope(|scope| {
        for rank in ThreadGroup::new(degree) {
            let rank_main = &rank_main;
            scope.spawn(move || rank_main(&rank));
        }
    });
}

/// Small whole numbers, which every dtype holds exactly.
fn tensor(kind: Kind, values: &[i64]) -> Tensor {
    Tensor::from_slice(values).to_kind(kind)
}

fn values(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_kind(Kind::Int64).view(-1)).unwrap()
}

#[test]
fn all_reduce_and_reduce_scatter_by_hand() {
    for (degree, kind) in DEGREES.into_iter().flat_map(|d| REDUCED.map(|kind| (d, kind))) {
        on_ranks(degree, |ranks| {
            let (rank, n) = (ranks.rank() as i64, degree as i64);
            // Rank r brings [r + 1, 10 - r]: the sums are n(n+1)/2 and 10n - n(n-1)/2.
            let (sum, tail) = (n * (n + 1) / 2, 10 * n - n * (n - 1) / 2);
            for (reduction, expected) in [
                (Reduction::Sum, [sum, tail]),
                (Reduction::TreeSum, [sum, tail]),
                (Reduction::Max, [n, 10]),
                (Reduction::Min, [1, 11 - n]),
            ] {
                let own = [rank + 1, 10 - rank];
                let whole = tensor(kind, &own);
                ranks.all_reduce(&whole, reduction, "whole").unwrap().wait().unwrap();
                assert_eq!(values(&whole), expected, "{degree} {kind:?} {reduction:?}");

                // The same two numbers for each rank, plus the number of the part.
                let parts: Vec<i64> = (0..n).flat_map(|part| own.map(|v| v + part)).collect();
                let (input, output) = (tensor(kind, &parts), tensor(kind, &[0, 0]));
                let scattered = ranks.reduce_scatter(&input, &output, reduction, "parts");
                scattered.unwrap().wait().unwrap();
                let adds = matches!(reduction, Reduction::Sum | Reduction::TreeSum);
                let shift = if adds { rank * n } else { rank };
                assert_eq!(values(&output), expected.map(|v| v + shift));
                assert_eq!(values(&input), parts, "the input is left as it was");
            }
        });
    }
}

#[test]
fn movements_by_hand() {
    for (degree, kind) in DEGREES.into_iter().flat_map(|d| MOVED.map(|kind| (d, kind))) {
        on_ranks(degree, |ranks| {
            let (rank, n) = (ranks.rank() as i64, degree as i64);
            let zeros = || Tensor::zeros([n, 2], (kind, Device::Cpu));

            let gathered = zeros();
            let shard = tensor(kind, &[rank, rank + 10]);
            ranks.all_gather(&shard, &gathered, "shards").unwrap().wait().unwrap();
            let expected: Vec<i64> = (0..n).flat_map(|r| [r, r + 10]).collect();
            assert_eq!(values(&gathered), expected);

            let given = tensor(kind, &[rank * 3, rank * 5]);
            let root = degree - 1;
            ranks.broadcast(&given, root, "given").unwrap().wait().unwrap();
            assert_eq!(values(&given), [root as i64 * 3, root as i64 * 5]);

            // Rank s sends 10 s + d to rank d.
            let sent: Vec<i64> = (0..n).flat_map(|to| [10 * rank + to; 2]).collect();
            let received = zeros();
            let swap = ranks.all_to_all(&tensor(kind, &sent), &received, "swap").unwrap();
            swap.wait().unwrap();
            let expected: Vec<i64> = (0..n).flat_map(|from| [10 * from + rank; 2]).collect();
            assert_eq!(values(&received), expected);

            ranks.barrier("end").unwrap().wait().unwrap();
        });
    }
}

#[test]
fn shards_may_lie_inside_the_whole() {
    for degree in DEGREES {
        on_ranks(degree, |ranks| {
            let (rank, n) = (ranks.rank() as i64, degree as i64);
            let whole = Tensor::full([2 * n], rank + 1, (Kind::Float, Device::Cpu));
            let shard = whole.narrow(0, 2 * rank, 2);
            // Both are queued before the first is waited for: the gather takes its result.
            let scatter = ranks.reduce_scatter(&whole, &shard, Reduction::Sum, "unit").unwrap();
            let gather = ranks.all_gather(&shard, &whole, "unit").unwrap();
            scatter.wait().unwrap();
            gather.wait().unwrap();
            assert_eq!(values(&whole), vec![n * (n + 1) / 2; degree * 2]);
        });
    }
}

#[test]
fn sums_are_in_rank_order() {
    // (1e8 + 1) + -1e8 is 0 in f32, as 1e8 + 1 rounds to 1e8; other orders give 1.
    let brought = [1e8f32, 1.0, -1e8, 1.0];
    for (reduction, expected) in [(Reduction::Sum, 1.0f32), (Reduction::TreeSum, 0.0)] {
        on_ranks(4, |ranks| {
            let value = Tensor::from_slice(&[brought[ranks.rank()]]);
            ranks.all_reduce(&value, reduction, "order").unwrap().wait().unwrap();
            assert_eq!(f32::try_from(&value).unwrap(), expected, "{reduction:?}");
        });
    }
}

#[test]
fn ranks_in_different_calls_are_told_of_each_other() {
    on_ranks(2, |ranks| {
        let count = if ranks.rank() == 0 { 4 } else { 5 };
        let value = Tensor::zeros([count], (Kind::Float, Device::Cpu));
        let error = ranks.all_reduce(&value, Reduction::Sum, "loss").unwrap().wait().unwrap_err();
        assert_eq!(
            error.to_string(),
            "ranks disagree: rank 0 is in call 0, all_reduce(Sum) `loss` of 4 f32 but rank 1 is \
             in call 0, all_reduce(Sum) `loss` of 5 f32; every rank must make the same calls in \
             the same order"
        );
        assert_eq!(ranks.barrier("later").unwrap_err(), error, "the failure stays");
    });
    let differ = |call: &(dyn Fn(&dyn Collective, &Tensor) -> Handle + Sync)| {
        on_ranks(3, |ranks| {
            let value = Tensor::zeros([3], (Kind::Float, Device::Cpu));
            let error = call(ranks, &value).wait().unwrap_err();
            assert!(matches!(error, Error::CallsDiffer { second_rank: 2, .. }), "{error}");
        });
    };
    differ(&|ranks, value| {
        let name = if ranks.rank() == 2 { "b" } else { "a" };
        ranks.broadcast(value, 0, name).unwrap()
    });
    differ(&|ranks, value| match ranks.rank() {
        2 => ranks.barrier("a").unwrap(),
        _ => ranks.broadcast(value, 0, "a").unwrap(),
    });
    differ(&|ranks, value| {
        let kind = if ranks.rank() == 2 { Kind::Int } else { Kind::Float };
        ranks.all_reduce(&value.to_kind(kind), Reduction::Sum, "a").unwrap()
    });
}

#[test]
fn a_rank_that_leaves_ends_the_calls_that_wait_for_it() {
    on_ranks(3, |ranks| {
        if ranks.rank() == 1 {
            return;
        }
        // Depending on who comes first, the call is refused or fails in the wait.
        let error = ranks.barrier("step").and_then(Handle::wait).unwrap_err();
        assert!(matches!(error, Error::PeerLeft { rank: 1, .. }), "{error}");
    });
}

#[test]
fn a_dropped_handle_waits() {
    on_ranks(2, |ranks| {
        let value = Tensor::from_slice(&[1.0f32]);
        drop(ranks.all_reduce(&value, Reduction::Sum, "dropped").unwrap());
        assert_eq!(f32::try_from(&value).unwrap(), 2.0);
    });
}

#[test]
fn tensors_that_do_not_fit_are_refused_on_one_rank_too() {
    let ranks = LocalCollective::new();
    let float = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let text = |outcome: Result<Handle>| outcome.unwrap_err().to_string();
    let sum = |tensor: &Tensor| text(ranks.all_reduce(tensor, Reduction::Sum, "w"));
    assert_eq!(
        sum(&float(&[2, 3]).transpose(0, 1)),
        "all_reduce(Sum) `w`: the in-place tensor of shape [3, 2] is not contiguous; call \
         contiguous() on it, or pass a narrow of a flat buffer"
    );
    assert_eq!(
        sum(&float(&[2]).to_kind(Kind::BFloat16)),
        "all_reduce(Sum) `w`: bf16 tensors can be moved but not reduced; reduce in f32 and \
         convert the result"
    );
    assert!(sum(&float(&[2]).to_kind(Kind::Half)).contains("dtype Half is not supported"));
    assert_eq!(
        text(ranks.all_gather(&float(&[2]), &float(&[3]), "w")),
        "all_gather `w`: 2 input elements do not fit 3 output elements; output must be degree * \
         input with 1 ranks"
    );
    let double = float(&[2]).to_kind(Kind::Double);
    assert!(matches!(
        ranks.all_gather(&float(&[2]), &double, "w").unwrap_err(),
        Error::DtypesDiffer { .. }
    ));
    assert!(matches!(ranks.broadcast(&double, 1, "w").unwrap_err(), Error::Root { .. }));
    let whole = float(&[4]);
    let overlapping = ranks.all_to_all(&whole, &whole, "w").unwrap_err();
    assert!(matches!(overlapping, Error::Overlap { .. }));
    let shifted = ranks.all_gather(&whole.narrow(0, 0, 3), &whole.narrow(0, 1, 3), "w");
    assert!(matches!(shifted.unwrap_err(), Error::Overlap { .. }));
}

#[test]
fn the_ledger_counts_calls_bytes_and_waits() {
    let totals = Mutex::new(Vec::new());
    on_ranks(2, |ranks| {
        let value = Tensor::zeros([6], (Kind::Float, Device::Cpu));
        ranks.all_reduce(&value, Reduction::Sum, "a").unwrap().wait().unwrap();
        let shard = value.narrow(0, 3 * ranks.rank() as i64, 3);
        let pending = ranks.all_gather(&shard, &value, "b").unwrap();
        pending.wait().unwrap();
        ranks.barrier("c").unwrap().wait().unwrap();
        assert!(ranks.ledger().in_flight().is_empty());
        let names: Vec<String> =
            ranks.ledger().recent().iter().map(|done| done.call.to_string()).collect();
        assert_eq!(
            names,
            [
                "call 0, all_reduce(Sum) `a` of 6 f32",
                "call 1, all_gather `b` of 6 f32",
                "call 2, barrier `c`"
            ]
        );
        totals.lock().unwrap().push(ranks.ledger().take_step());
        assert_eq!(ranks.ledger().totals(), StepTotals::default(), "a new step begins at zero");
    });
    for totals in totals.into_inner().unwrap() {
        assert_eq!((totals.calls(), totals.bytes()), (3, 48));
        assert_eq!(
            totals.by_operation["all_reduce"],
            OperationTotals { calls: 1, elements: 6, bytes: 24, sent_bytes: 24 }
        );
        assert!(totals.exposed_seconds > 0.0 && totals.communication_seconds > 0.0);
    }
}

#[test]
fn a_call_under_way_is_in_flight() {
    let mut ranks = ThreadGroup::new(2);
    let (second, first) = (ranks.pop().unwrap(), ranks.pop().unwrap());
    let pending = first.barrier("late").unwrap();
    let in_flight = first.ledger().in_flight();
    assert_eq!(in_flight.len(), 1);
    assert_eq!(in_flight[0].call.name, "late");
    assert!(in_flight[0].waiting_seconds >= 0.0);
    second.barrier("late").unwrap().wait().unwrap();
    pending.wait().unwrap();
    assert!(first.ledger().in_flight().is_empty());
}
