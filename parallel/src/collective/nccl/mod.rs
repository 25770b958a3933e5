//! Ranks with a GPU each, over NVIDIA's NCCL, which is loaded when it is first needed.
//!
//! Communication is queued on a stream of its own, in the order of the calls, and runs beside what
//! libtorch computes on the default stream. Events tie the two together: a call begins when what
//! was queued on the default stream before it is done, and what is queued there after
//! [`Handle::wait`] begins when the call is done. The host waits for neither.
//!
//! Written against NCCL 2.28 and CUDA 13; not run on a GPU so far.

mod communicator;
mod fold;
mod gpu;
mod library;
mod meeting;
mod operation;
mod span;
mod started;

use std::{
    fmt,
    sync::{Arc, PoisonError},
    thread,
};

use tch::Device;

pub(super) use self::started::Started;
use self::{
    communicator::Communicator,
    gpu::{Between, Gpu, cuda, timed_event},
    library::Search,
};
use super::{
    Collective, Handle, Ledger,
    call::{Buffers, Request},
};
use crate::error::{Error, GpuError, Result};

/// One rank among processes with a GPU each.
///
/// Tensors on this rank's GPU travel by NCCL. Tensors on the host and barriers, which the host has
/// to wait for, go to the parent, so a trainer has one collective for both. They share the ledger.
///
/// # Reduction order
/// [`Reduction::Sum`](super::Reduction::Sum) and [`Reduction::TreeSum`](super::Reduction::TreeSum)
/// are both NCCL's own sum: the same bits on all ranks, but in an order that depends on the
/// number of ranks, the size and the network. [`Collective::ordered_reduce_scatter`] adds in rank
/// order. Max and Min of floats, NaN included, take a contribution from every rank to every rank.
///
/// # Memory
/// An ordered reduce-scatter, and Max and Min of floats, take `degree - 1` times the output's
/// elements, in the input's dtype, until they are waited for.
///
/// # Checks
/// Ranks that are not in the same call are not found out: they wait for each other, or mix their
/// data. The parent's check covers what goes through the parent.
///
/// # Ending
/// Dropping waits for what is queued, and then drops the parent. A rank that stops for a reason of
/// its own must [`Collective::abort`].
pub struct NcclCollective {
    gpu: Arc<Gpu>,
    comm: Arc<Communicator>,
    ledger: Ledger,
    // Dropped after the communicator, which the drop below ends.
    parent: Box<dyn Collective>,
}

/// Why there is no NCCL, with the parent to go on with, or to abort by.
pub struct Refused {
    /// What is missing, or went wrong.
    pub error: Error,
    /// The collective that was to be the parent.
    pub parent: Box<dyn Collective>,
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("error", &self.error).finish_non_exhaustive()
    }
}

impl NcclCollective {
    /// Joins the ranks of `parent`, each with the GPU of its `local_rank` on its host.
    ///
    /// # Collectives
    /// Every rank of the parent must connect. If one of them has no GPU or no NCCL, all are
    /// refused: it with its reason, the others with its rank.
    ///
    /// # Errors
    /// [`GpuError`] for libraries and GPUs that are missing or do not fit together,
    /// [`Error::Cuda`], [`Error::Nccl`], and those of the parent. After [`Error::Nccl`] some ranks
    /// may be connected, so end the run by the parent's [`Collective::abort`]; after
    /// [`Error::Gpu`] all ranks are refused alike, and the parent works on.
    pub fn connect(
        parent: Box<dyn Collective>,
        local_rank: usize,
    ) -> std::result::Result<Self, Box<Refused>> {
        Self::connect_with(parent, &Search::of_process(), local_rank)
    }

    fn connect_with(
        parent: Box<dyn Collective>,
        search: &Search,
        local_rank: usize,
    ) -> std::result::Result<Self, Box<Refused>> {
        match join(&*parent, search, local_rank) {
            Ok((gpu, comm)) => {
                let ledger = parent.ledger().clone();
                Ok(Self { gpu: Arc::new(gpu), comm: Arc::new(comm), ledger, parent })
            }
            Err(error) => Err(Box::new(Refused { error, parent })),
        }
    }

    /// Whether a request is one for the parent.
    fn is_for_host(&self, request: &Request) -> Result<bool> {
        let device = match &request.buffers {
            Buffers::None => return Ok(true),
            Buffers::InPlace(tensor) => tensor.device(),
            Buffers::Between { input, .. } => input.device(),
        };
        let own = Device::Cuda(self.gpu.ordinal);
        if device == Device::Cpu || device == own {
            return Ok(device == Device::Cpu);
        }
        Err(Error::Gpu(GpuError::OtherDevice {
            operation: request.operation,
            name: request.name.clone(),
            found: format!("{device:?}"),
            own: format!("{own:?}"),
        }))
    }

    /// Queues a request between two events, and counts it.
    fn start(&self, request: Request) -> Result<Handle> {
        let _turn = self.gpu.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = self.gpu.failure.get() {
            return Err(error.clone());
        }
        self.gpu.bind()?;
        // Memory first, so that the side stream waits for whoever had it before.
        let scratch = operation::scratch(&request, self.comm.degree)?;
        let call = self.ledger.open(&request);
        let queue = || {
            let side = &self.gpu.side;
            side.join(&self.gpu.compute).map_err(cuda("cuStreamWaitEvent"))?;
            let begin = timed_event(side)?;
            operation::queue(&self.gpu, &self.comm, &request, scratch.as_ref())?;
            Ok((begin, timed_event(side)?))
        };
        match queue() {
            Ok((begin, done)) => {
                self.ledger.close_later(call, Box::new(Between(begin, Arc::clone(&done))));
                let (gpu, comm) = (Arc::clone(&self.gpu), Arc::clone(&self.comm));
                let started = Started { gpu, comm, done, memory: (request.buffers, scratch) };
                Ok(Handle::on_device(started, self.ledger.clone()))
            }
            Err(error) => {
                self.ledger.close(&call, 0.0);
                // A part of the call may be under way, so its memory is never given back.
                std::mem::forget((request.buffers, scratch));
                Err(self.gpu.fail(error))
            }
        }
    }
}

/// Opens the GPU, meets the peers, and joins them.
fn join(
    parent: &dyn Collective,
    search: &Search,
    local_rank: usize,
) -> Result<(Gpu, Communicator)> {
    let gpu = Gpu::open(search, local_rank);
    let met = meeting::meet(parent, gpu.as_ref().ok().map(|gpu| gpu.ready));
    // What is missing here says more than that it is missing.
    let gpu = gpu?;
    met?;
    let own_id = match parent.rank() {
        0 => communicator::new_id(&gpu.nccl).map(Some),
        _ => Ok(None),
    };
    let id = meeting::share_id(parent, own_id.as_ref().ok().copied().flatten());
    own_id?;
    gpu.bind()?;
    let nccl = Arc::clone(&gpu.nccl);
    let comm = Communicator::connect(nccl, id?, parent.rank(), parent.degree())?;
    Ok((gpu, comm))
}

impl Collective for NcclCollective {
    fn rank(&self) -> usize {
        self.comm.rank
    }

    fn degree(&self) -> usize {
        self.comm.degree
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn submit(&self, request: Request) -> Result<Handle> {
        if self.is_for_host(&request)? { self.parent.submit(request) } else { self.start(request) }
    }

    fn group(&self, ranks: &[usize], name: &str) -> Result<Box<dyn Collective>> {
        if let Some(error) = self.gpu.failure.get() {
            return Err(error.clone());
        }
        let parent = self.parent.group(ranks, name)?;
        // The parent has checked that the groups are a partition, so their first ranks differ.
        let color = ranks.first().copied().unwrap_or(0);
        let split = || {
            self.gpu.bind()?;
            self.gpu.finish()?;
            self.comm.split(color, parent.rank(), parent.degree())
        };
        let comm = split().map_err(|error| self.gpu.fail(error))?;
        let (gpu, comm, ledger) = (Arc::clone(&self.gpu), Arc::new(comm), self.ledger.clone());
        Ok(Box::new(Self { gpu, comm, ledger, parent }))
    }

    fn abort(&self, code: i32) {
        self.comm.abort();
        self.parent.abort(code);
    }
}

impl Drop for NcclCollective {
    fn drop(&mut self) {
        if thread::panicking() {
            // The parent ends this process, and must not be kept from it.
            self.comm.leave();
        } else if self.gpu.failure.get().is_some() || self.gpu.finish().is_err() {
            self.comm.abort();
        } else {
            self.comm.destroy();
        }
    }
}

#[cfg(test)]
mod tests;
