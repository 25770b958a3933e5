//! Partitions of memory, and NCCL's names of dtypes and reductions.

use cudarc::nccl::sys::{ncclDataType_t, ncclRedOp_t};
use tch::{Device, Kind, Tensor};

use super::{Span, data_type, reduces_as_promised, reduction_code};
use crate::collective::{Dtype, Reduction};

#[test]
fn a_span_is_the_memory_of_its_tensor() {
    let tensor = Tensor::zeros([3, 8], (Kind::BFloat16, Device::Cpu));
    let span = Span::of_tensor(&tensor.narrow(0, 1, 2), Dtype::Bf16);
    assert_eq!(span.as_ptr().addr(), tensor.data_ptr().addr() + 16);
    assert_eq!(span.device_address(), span.as_ptr().addr() as u64);
    assert_eq!((span.count, span.bytes()), (16, 32));
}

#[test]
fn parts_cover_the_whole_once_and_in_order() {
    let whole = Span { address: 4096, count: 12, dtype: Dtype::F64 };
    let parts = whole.parts(3);
    let found: Vec<_> = parts.iter().map(|part| (part.address, part.count)).collect();
    assert_eq!(found, [(4096, 4), (4128, 4), (4160, 4)]);
    assert!(parts.iter().all(|part| part.dtype == Dtype::F64));
}

#[test]
fn peers_have_places_in_rank_order_without_a_gap() {
    let scratch = Span { address: 256, count: 6, dtype: Dtype::Bf16 };
    for (rank, expected) in [
        (0, [(256, 0), (256, 2), (260, 2), (264, 2)]),
        (2, [(256, 2), (260, 2), (256, 0), (264, 2)]),
        (3, [(256, 2), (260, 2), (264, 2), (256, 0)]),
    ] {
        let places = scratch.places(rank, 4);
        let found: Vec<_> = places.iter().map(|place| (place.address, place.count)).collect();
        assert_eq!(found, expected, "rank {rank}");
    }
    let none = Span { count: 0, ..scratch };
    assert_eq!(none.places(0, 1), [none]);
}

#[test]
fn every_dtype_has_ncclss_name_of_the_same_size() {
    let names = Dtype::ALL.map(data_type);
    use ncclDataType_t::{ncclBfloat16, ncclFloat32, ncclFloat64, ncclInt32, ncclInt64, ncclUint8};
    assert_eq!(names, [ncclFloat32, ncclFloat64, ncclInt32, ncclInt64, ncclBfloat16, ncclUint8]);
    // The numbers are NCCL's binary interface, fixed since bf16 came with 2.10.
    assert_eq!(names.map(|name| name as u32), [7, 8, 2, 4, 9, 1]);
}

#[test]
fn reductions_that_lose_a_nan_are_not_left_to_nccl() {
    assert_eq!(reduction_code(Reduction::TreeSum), ncclRedOp_t::ncclSum);
    assert_eq!(reduction_code(Reduction::Max) as u32, 2);
    assert_eq!(reduction_code(Reduction::Min) as u32, 3);
    for dtype in [Dtype::F32, Dtype::F64, Dtype::I32, Dtype::I64] {
        let float = matches!(dtype, Dtype::F32 | Dtype::F64);
        assert!(reduces_as_promised(Reduction::Sum, dtype));
        assert_eq!(reduces_as_promised(Reduction::Max, dtype), !float);
        assert_eq!(reduces_as_promised(Reduction::Min, dtype), !float);
    }
}
