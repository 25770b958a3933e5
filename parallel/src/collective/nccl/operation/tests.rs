//! Which calls need memory for the peers' contributions, and how much.

use tch::{Device, Kind, Tensor};

use super::{folds, scratch};
use crate::collective::{Dtype, Onto, Operation, Reduction, call::Request, nccl::fold::How};

/// Ranks of the calls below.
const DEGREE: usize = 4;

fn between(operation: Operation, input: i64, output: i64, kinds: (Kind, Kind)) -> Request {
    let tensor = |numel, kind| Tensor::zeros([numel], (kind, Device::Cpu));
    let (input, output) = (tensor(input, kinds.0), tensor(output, kinds.1));
    Request::between(operation, &input, &output, "here", (1, DEGREE)).unwrap()
}

#[test]
fn an_ordered_sum_takes_the_other_ranks_parts_in_the_inputs_dtype() {
    let operation = Operation::OrderedReduceScatter(Onto::Output);
    let request = between(operation, 20, 5, (Kind::BFloat16, Kind::Float));
    let scratch = scratch(&request, DEGREE).unwrap().unwrap();
    assert_eq!((scratch.numel(), scratch.kind()), (15, Kind::BFloat16));
    assert_eq!(folds(operation, Dtype::Bf16), Some(How::Sum(Onto::Output)));
}

#[test]
fn only_float_extremes_are_folded_among_the_reductions() {
    let all = |kind| {
        let tensor = Tensor::zeros([7], (kind, Device::Cpu));
        Request::in_place(Operation::AllReduce(Reduction::Min), &tensor, "here", DEGREE).unwrap()
    };
    let floats = scratch(&all(Kind::Double), DEGREE).unwrap().unwrap();
    assert_eq!((floats.numel(), floats.kind()), (21, Kind::Double));
    assert!(scratch(&all(Kind::Int64), DEGREE).unwrap().is_none());

    let part =
        |reduction| between(Operation::ReduceScatter(reduction), 8, 2, (Kind::Float, Kind::Float));
    assert_eq!(scratch(&part(Reduction::Max), DEGREE).unwrap().unwrap().numel(), 6);
    for reduction in [Reduction::Sum, Reduction::TreeSum] {
        assert!(scratch(&part(reduction), DEGREE).unwrap().is_none(), "{reduction:?}");
    }
    assert_eq!(folds(Operation::AllReduce(Reduction::Max), Dtype::F32), Some(How::Largest));
    assert_eq!(folds(Operation::ReduceScatter(Reduction::Min), Dtype::F32), Some(How::Smallest));
}

#[test]
fn movements_need_no_memory() {
    let request = between(Operation::AllToAll, 8, 8, (Kind::Uint8, Kind::Uint8));
    assert!(scratch(&request, DEGREE).unwrap().is_none());
    assert!(scratch(&Request::barrier("here"), DEGREE).unwrap().is_none());
}
