//! This rank's GPU: its streams, its kernels, and what went wrong on it.
#![allow(unsafe_code, reason = "device memory is copied by address")]

use std::sync::{Arc, Mutex, OnceLock};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DriverError, result, sys::CUevent_flags, sys::CUresult,
};

use super::{
    fold::Fold,
    library::{Nccl, Search},
    meeting::Ready,
    span::Span,
};
use crate::{
    collective::ledger::Interval,
    error::{Error, GpuError, Result},
};

/// What the communicators of one rank share.
#[derive(Debug)]
pub(super) struct Gpu {
    pub(super) nccl: Arc<Nccl>,
    pub(super) ready: Ready,
    pub(super) ordinal: usize,
    context: Arc<CudaContext>,
    /// Where libtorch computes: the default stream, which waits for and is waited for explicitly.
    pub(super) compute: Arc<CudaStream>,
    /// Where all communication is queued.
    pub(super) side: Arc<CudaStream>,
    pub(super) fold: Fold,
    /// Held while a call is queued, so that its parts stay together.
    pub(super) turn: Mutex<()>,
    /// What went wrong first; the outcome of every call thereafter.
    pub(super) failure: OnceLock<Error>,
}

impl Gpu {
    /// Opens the GPU numbered `ordinal`: its libraries, its context (the one that libtorch uses),
    /// a stream and the kernels.
    ///
    /// # Errors
    /// [`GpuError`] for what is missing; [`Error::Cuda`].
    pub(super) fn open(search: &Search, ordinal: usize) -> Result<Self> {
        let nccl = Arc::new(search.open()?);
        let num_gpus = count_gpus()?;
        if ordinal >= num_gpus {
            return Err(GpuError::Missing { local_rank: ordinal, num_gpus }.into());
        }
        let context = CudaContext::new(ordinal).map_err(cuda("cuDevicePrimaryCtxRetain"))?;
        let uuid = context.uuid().map_err(cuda("cuDeviceGetUuid"))?.bytes.map(|byte| byte as u8);
        let ready = Ready { uuid, version: nccl.version()? };
        let fold = Fold::load(&context)?;
        let compute = context.default_stream();
        let side = context.new_stream().map_err(cuda("cuStreamCreate"))?;
        let (turn, failure) = (Mutex::new(()), OnceLock::new());
        Ok(Self { nccl, ready, ordinal, context, compute, side, fold, turn, failure })
    }

    /// Makes this GPU the one of the calling thread, which NCCL goes by.
    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(cuda("cuCtxSetCurrent"))
    }

    /// Keeps a failure as the outcome of all later calls, and gives it back.
    pub(super) fn fail(&self, error: Error) -> Error {
        self.failure.get_or_init(|| error).clone()
    }

    /// Waits on the host until all that was queued on the side stream is done.
    pub(super) fn finish(&self) -> Result<()> {
        self.side.synchronize().map_err(cuda("cuStreamSynchronize"))
    }

    /// Copies `from` over `to` on the side stream; the same memory twice is fine.
    pub(super) fn copy(&self, from: Span, to: Span) -> Result<()> {
        assert_eq!(from.bytes(), to.bytes(), "spans of one length");
        if from == to || from.bytes() == 0 {
            return Ok(());
        }
        let (target, source) = (to.device_address(), from.device_address());
        // SAFETY: the makers of the spans keep the memory until the stream is done with it, and
        // different parts of a call do not overlap.
        unsafe { result::memcpy_dtod_async(target, source, from.bytes(), self.side.cu_stream()) }
            .map_err(cuda("cuMemcpyDtoDAsync"))
    }
}

fn count_gpus() -> Result<usize> {
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(error) => Err(cuda("cuInit")(error)),
    }
}

/// Turns the driver's error into ours.
pub(super) fn cuda(function: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| {
        let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
        let message = text.unwrap_or_else(|_| "no text for this code".to_owned());
        Error::Cuda { function, code: error.0 as u32, message }
    }
}

/// A new event that has been recorded on `stream` and knows its time.
pub(super) fn timed_event(stream: &CudaStream) -> Result<Arc<CudaEvent>> {
    let event = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    event.map(Arc::new).map_err(cuda("cuEventRecord"))
}

/// The time from one event to another; none if they pass in the other order.
#[derive(Debug)]
pub(super) struct Between(pub(super) Arc<CudaEvent>, pub(super) Arc<CudaEvent>);

impl Interval for Between {
    fn seconds(&self) -> Option<f64> {
        let Self(begin, end) = self;
        // Whoever watches the ledger may be a thread without a context. If the GPU is in trouble
        // the call counts as under way, which is what the watcher should see.
        begin.context().bind_to_thread().ok()?;
        if !(begin.is_complete() && end.is_complete()) {
            return None;
        }
        // No timing is worth a run: a time that cannot be had counts as none.
        let milliseconds = begin.elapsed_ms(end).unwrap_or(0.0);
        Some(f64::from(milliseconds.max(0.0)) / 1e3)
    }
}
