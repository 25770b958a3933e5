//! NCCL's communicator: its calls, checked, on a stream that the caller names.
#![allow(unsafe_code, reason = "NCCL is a C library that works on raw device memory")]

use std::{
    ffi::{c_char, c_int},
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::{
    driver::CudaStream,
    nccl::sys::{cudaStream_t, ncclComm_t, ncclResult_t, ncclUniqueId},
};

use super::{
    library::{Code, Nccl},
    meeting::ID_BYTES,
    span::{Span, data_type, reduction_code},
};
use crate::{
    collective::Reduction,
    error::{Error, Result},
};

/// NCCL's handle of a communicator.
#[derive(Debug, Clone, Copy)]
struct Handle(ncclComm_t);

// SAFETY: NCCL lets any thread use a communicator, one at a time, which the mutex sees to.
unsafe impl Send for Handle {}

/// One rank of a group of ranks with a GPU each.
#[derive(Debug)]
pub(super) struct Communicator {
    nccl: Arc<Nccl>,
    /// `None` once it was destroyed or aborted.
    handle: Mutex<Option<Handle>>,
    pub(super) rank: usize,
    pub(super) degree: usize,
}

/// A new id, by which the ranks of one communicator find each other.
///
/// # Errors
/// [`Error::Nccl`].
pub(super) fn new_id(nccl: &Nccl) -> Result<[u8; ID_BYTES]> {
    let mut id = ncclUniqueId { internal: [0; ID_BYTES] };
    // SAFETY: the function fills the id.
    nccl.check("ncclGetUniqueId", unsafe { (nccl.get_unique_id)(&mut id) })?;
    Ok(id.internal.map(|byte| byte as u8))
}

impl Communicator {
    /// Joins the ranks that have the same id. This thread's CUDA context says which GPU is meant.
    ///
    /// # Collectives
    /// Every rank below `degree` must call.
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub(super) fn connect(
        nccl: Arc<Nccl>,
        id: [u8; ID_BYTES],
        rank: usize,
        degree: usize,
    ) -> Result<Self> {
        let id = ncclUniqueId { internal: id.map(|byte| byte as c_char) };
        let mut comm = std::ptr::null_mut();
        // SAFETY: the function writes the handle, which is not used unless it succeeded.
        let code = unsafe { (nccl.comm_init_rank)(&mut comm, int(degree), id, int(rank)) };
        nccl.check("ncclCommInitRank", code)?;
        Ok(Self { nccl, handle: Mutex::new(Some(Handle(comm))), rank, degree })
    }

    /// The communicator of the ranks that give the same `color`, this one being `rank` of
    /// `degree` there. Nothing may be queued in this one.
    ///
    /// # Collectives
    /// Every rank of this communicator must call.
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub(super) fn split(&self, color: usize, rank: usize, degree: usize) -> Result<Self> {
        let mut part = std::ptr::null_mut();
        self.call("ncclCommSplit", |comm| {
            // SAFETY: the handle is valid, the function writes the new one, and without a
            // configuration it takes this communicator's.
            unsafe {
                (self.nccl.comm_split)(comm, int(color), int(rank), &mut part, std::ptr::null_mut())
            }
        })?;
        let handle = Mutex::new(Some(Handle(part)));
        Ok(Self { nccl: Arc::clone(&self.nccl), handle, rank, degree })
    }

    /// Queues `tensor := reduction over ranks`, in NCCL's order.
    ///
    /// # Errors
    /// [`Error::Nccl`], here and below.
    pub(super) fn all_reduce(
        &self,
        tensor: Span,
        reduction: Reduction,
        stream: &CudaStream,
    ) -> Result<()> {
        let (kind, op) = (data_type(tensor.dtype), reduction_code(reduction));
        self.call("ncclAllReduce", |comm| {
            let pointer = tensor.as_ptr();
            // SAFETY: the span's maker keeps its memory until the stream is done with it, and
            // NCCL reduces in place.
            unsafe {
                let function = self.nccl.all_reduce;
                function(pointer, pointer, tensor.count, kind, op, comm, raw(stream))
            }
        })
    }

    /// Queues `output := this rank's part of the reduction over ranks of input`, in NCCL's order.
    pub(super) fn reduce_scatter(
        &self,
        (input, output): (Span, Span),
        reduction: Reduction,
        stream: &CudaStream,
    ) -> Result<()> {
        assert!(input.count == output.count * self.degree && input.dtype == output.dtype);
        let (kind, op) = (data_type(input.dtype), reduction_code(reduction));
        self.call("ncclReduceScatter", |comm| {
            let (from, to) = (input.as_ptr(), output.as_ptr());
            // SAFETY: as above; the input is `degree` times the output, and if they overlap the
            // output is this rank's part of the input, which is NCCL's in-place form.
            unsafe {
                let function = self.nccl.reduce_scatter;
                function(from, to, output.count, kind, op, comm, raw(stream))
            }
        })
    }

    /// Queues `output := the inputs of all ranks`.
    pub(super) fn all_gather(&self, input: Span, output: Span, stream: &CudaStream) -> Result<()> {
        assert!(output.count == input.count * self.degree && input.dtype == output.dtype);
        self.call("ncclAllGather", |comm| {
            let (from, to, kind) = (input.as_ptr(), output.as_ptr(), data_type(input.dtype));
            // SAFETY: as above; the output is `degree` times the input, and if they overlap the
            // input is this rank's part of the output, which is NCCL's in-place form.
            unsafe { (self.nccl.all_gather)(from, to, input.count, kind, comm, raw(stream)) }
        })
    }

    /// Queues `tensor := that of root`.
    pub(super) fn broadcast(&self, tensor: Span, root: usize, stream: &CudaStream) -> Result<()> {
        self.call("ncclBroadcast", |comm| {
            let (pointer, kind) = (tensor.as_ptr(), data_type(tensor.dtype));
            // SAFETY: as above; NCCL broadcasts in place.
            unsafe {
                let function = self.nccl.broadcast;
                function(pointer, pointer, tensor.count, kind, int(root), comm, raw(stream))
            }
        })
    }

    /// Queues giving `gives[peer]` to each peer and filling `takes[peer]` from it, all at once.
    /// The own entries are not looked at.
    pub(super) fn exchange(
        &self,
        gives: &[Span],
        takes: &[Span],
        stream: &CudaStream,
    ) -> Result<()> {
        assert!(gives.len() == self.degree && takes.len() == self.degree, "one for each rank");
        // SAFETY: opens a group of calls of this thread, which is closed below in any case.
        self.call("ncclGroupStart", |_| unsafe { (self.nccl.group_start)() })?;
        let outcome = (0..self.degree)
            .filter(|&peer| peer != self.rank)
            .try_for_each(|peer| self.swap(gives[peer], takes[peer], peer, stream));
        // SAFETY: closes the group, and with it starts what is in it.
        let end = self.call("ncclGroupEnd", |_| unsafe { (self.nccl.group_end)() });
        outcome.and(end)
    }

    fn swap(&self, give: Span, take: Span, peer: usize, stream: &CudaStream) -> Result<()> {
        self.call("ncclSend", |comm| {
            let (from, kind) = (give.as_ptr(), data_type(give.dtype));
            // SAFETY: as above.
            unsafe { (self.nccl.send)(from, give.count, kind, int(peer), comm, raw(stream)) }
        })?;
        self.call("ncclRecv", |comm| {
            let (to, kind) = (take.as_ptr(), data_type(take.dtype));
            // SAFETY: as above.
            unsafe { (self.nccl.receive)(to, take.count, kind, int(peer), comm, raw(stream)) }
        })
    }

    /// What has gone wrong since, such as a peer or a network that is gone. Does not wait.
    pub(super) fn asynchronous_error(&self) -> Result<()> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Handle(comm)) = *handle else { return Ok(()) };
        let mut found: Code = 0;
        // SAFETY: the handle is valid, and the function writes one number.
        let code = unsafe { (self.nccl.comm_get_async_error)(comm, &mut found) };
        self.nccl.check("ncclCommGetAsyncError", code)?;
        self.nccl.check("NCCL's communication", found)
    }

    /// Gives up what is queued, so that the GPU does not wait for peers, and ends it.
    pub(super) fn abort(&self) {
        if let Some(Handle(comm)) = self.take() {
            // SAFETY: the handle was valid and is not used again. A failure changes nothing.
            unsafe { (self.nccl.comm_abort)(comm) };
        }
    }

    /// Ends it, once all that was queued is done.
    pub(super) fn destroy(&self) {
        if let Some(Handle(comm)) = self.take() {
            // SAFETY: the handle was valid and is not used again. A failure changes nothing.
            unsafe { (self.nccl.comm_destroy)(comm) };
        }
    }

    /// Leaves it to the end of the process.
    pub(super) fn leave(&self) {
        self.take();
    }

    fn take(&self) -> Option<Handle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// One checked call.
    fn call(&self, function: &'static str, call: impl FnOnce(ncclComm_t) -> Code) -> Result<()> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Handle(comm)) = *handle else {
            let message = "the communicator has been aborted".to_owned();
            return Err(Error::Nccl {
                function,
                code: ncclResult_t::ncclInvalidUsage as i32,
                message,
            });
        };
        self.nccl.check(function, call(comm))
    }
}

/// The same stream by the name that `cudarc` gives it for NCCL.
fn raw(stream: &CudaStream) -> cudaStream_t {
    stream.cu_stream().cast()
}

fn int(number: usize) -> c_int {
    c_int::try_from(number).expect("there are fewer than 2^31 ranks")
}
