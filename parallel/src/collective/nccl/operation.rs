//! Each operation as a sequence of NCCL's calls, copies and foldings on the side stream.

use tch::{Device, Kind, Tensor};

use super::{
    communicator::Communicator,
    fold::{Folding, How},
    gpu::Gpu,
    span::{Span, reduces_as_promised},
};
use crate::{
    collective::{
        Dtype, Operation, Reduction,
        call::{Buffers, Request},
    },
    error::{Error, Result},
};

/// How an operation folds what the ranks bring, if NCCL cannot reduce it as promised.
fn folds(operation: Operation, dtype: Dtype) -> Option<How> {
    match operation {
        Operation::OrderedReduceScatter(onto) => Some(How::Sum(onto)),
        Operation::AllReduce(reduction) | Operation::ReduceScatter(reduction)
            if !reduces_as_promised(reduction, dtype) =>
        {
            Some(if reduction == Reduction::Max { How::Largest } else { How::Smallest })
        }
        _ => None,
    }
}

/// Memory for the peers' contributions to a folding, allocated where libtorch computes.
///
/// # Errors
/// [`Error::Tensor`], as when the GPU's memory is full.
pub(super) fn scratch(request: &Request, degree: usize) -> Result<Option<Tensor>> {
    let Some(dtype) = request.dtype else { return Ok(None) };
    if folds(request.operation, dtype).is_none() {
        return Ok(None);
    }
    let (kind, device, part_numel) = match &request.buffers {
        Buffers::None => return Ok(None),
        Buffers::InPlace(tensor) => (tensor.kind(), tensor.device(), tensor.numel()),
        Buffers::Between { input, output } => (input.kind(), input.device(), output.numel()),
    };
    allocate(part_numel * (degree - 1), kind, device).map(Some).map_err(|message| Error::Tensor {
        operation: request.operation,
        name: request.name.clone(),
        message,
    })
}

fn allocate(numel: usize, kind: Kind, device: Device) -> std::result::Result<Tensor, String> {
    let numel = i64::try_from(numel).map_err(|error| error.to_string())?;
    Tensor::f_empty([numel], (kind, device)).map_err(|error| error.to_string())
}

/// Queues a call on the side stream. `scratch` is what [`scratch`] gave for it.
///
/// # Errors
/// [`Error::Nccl`] and [`Error::Cuda`]; parts of the call may then be queued.
pub(super) fn queue(
    gpu: &Gpu,
    comm: &Communicator,
    request: &Request,
    scratch: Option<&Tensor>,
) -> Result<()> {
    let Some(dtype) = request.dtype else { return Ok(()) };
    let (input, output) = match &request.buffers {
        Buffers::None => return Ok(()),
        Buffers::InPlace(tensor) => {
            let span = Span::of_tensor(tensor, dtype);
            (span, span)
        }
        Buffers::Between { input, output } => {
            let sum_dtype = sum_dtype(request.operation, dtype);
            (Span::of_tensor(input, dtype), Span::of_tensor(output, sum_dtype))
        }
    };
    if input.count == 0 {
        return Ok(());
    }
    if let (Some(how), Some(scratch)) = (folds(request.operation, dtype), scratch) {
        let peers = Span::of_tensor(scratch, dtype);
        return fold(gpu, comm, how, (input, peers, output));
    }
    match request.operation {
        Operation::AllReduce(reduction) => comm.all_reduce(input, reduction, &gpu.side),
        Operation::ReduceScatter(reduction) => {
            comm.reduce_scatter((input, output), reduction, &gpu.side)
        }
        Operation::AllGather => comm.all_gather(input, output, &gpu.side),
        Operation::Broadcast { root } => comm.broadcast(input, root, &gpu.side),
        Operation::AllToAll => {
            let (gives, takes) = (input.parts(comm.degree), output.parts(comm.degree));
            gpu.copy(gives[comm.rank], takes[comm.rank])?;
            comm.exchange(&gives, &takes, &gpu.side)
        }
        Operation::Barrier | Operation::OrderedReduceScatter(_) => {
            unreachable!("a barrier has no tensors, and an ordered sum is folded")
        }
    }
}

/// Collects the peers' contributions, and folds them with this rank's own in rank order.
fn fold(
    gpu: &Gpu,
    comm: &Communicator,
    how: How,
    (input, peers, output): (Span, Span, Span),
) -> Result<()> {
    let (rank, degree) = (comm.rank, comm.degree);
    // An all-reduce gives all of its elements to everyone.
    let gives = if input.count == output.count { vec![input; degree] } else { input.parts(degree) };
    comm.exchange(&gives, &peers.places(rank, degree), &gpu.side)?;
    let folding = Folding { how, peers, own: gives[rank], out: output, rank, degree };
    gpu.fold.run(&gpu.side, &folding)
}

/// The dtype of the output: an ordered sum widens bf16.
fn sum_dtype(operation: Operation, dtype: Dtype) -> Dtype {
    match (operation, dtype) {
        (Operation::OrderedReduceScatter(_), Dtype::Bf16) => Dtype::F32,
        _ => dtype,
    }
}

#[cfg(test)]
mod tests;
