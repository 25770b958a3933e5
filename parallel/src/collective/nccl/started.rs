//! A call that is queued on the side stream, until the compute stream is to wait for it.

use std::{mem, sync::Arc};

use cudarc::driver::CudaEvent;
use tch::Tensor;

use super::{
    communicator::Communicator,
    gpu::{Between, Gpu, cuda, timed_event},
};
use crate::{
    collective::{Ledger, call::Buffers},
    error::Result,
};

/// What a handle of a call on the GPU holds.
pub(in crate::collective) struct Started {
    pub(super) gpu: Arc<Gpu>,
    pub(super) comm: Arc<Communicator>,
    /// Passes when the call is done.
    pub(super) done: Arc<CudaEvent>,
    /// The memory that the call works on. libtorch may reuse it for what is queued on the compute
    /// stream after it was freed, so it is freed when that stream waits for the call.
    pub(super) memory: (Buffers, Option<Tensor>),
}

impl Started {
    /// Makes the compute stream wait for the call. The host does not wait.
    ///
    /// # Errors
    /// The failure of this or an earlier call; [`Error::Nccl`] for what NCCL found out meanwhile.
    pub(in crate::collective) fn wait(self, ledger: &Ledger) -> Result<()> {
        match self.wait_on_device(ledger) {
            Ok(()) => Ok(()),
            Err(error) => {
                // NCCL may still be at work on this memory, so it is never given back.
                mem::forget(self.memory);
                Err(error)
            }
        }
    }

    fn wait_on_device(&self, ledger: &Ledger) -> Result<()> {
        if let Some(error) = self.gpu.failure.get() {
            return Err(error.clone());
        }
        self.join(ledger).map_err(|error| {
            // Otherwise the GPU, and whoever waits for it, would wait for peers that are gone.
            self.comm.abort();
            self.gpu.fail(error)
        })
    }

    fn join(&self, ledger: &Ledger) -> Result<()> {
        self.comm.asynchronous_error()?;
        let reached = timed_event(&self.gpu.compute)?;
        self.gpu.compute.wait(&self.done).map_err(cuda("cuStreamWaitEvent"))?;
        ledger.add_exposed_later(Box::new(Between(reached, Arc::clone(&self.done))));
        Ok(())
    }
}
