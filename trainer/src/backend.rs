//! What carries tensors between ranks: MPI from the start, and NCCL on top where there are GPUs.

use grove_parallel::collective::NcclCollective;
use grove_parallel::{Collective, Launch};
use tch::Device;

use crate::config::{Backend, Plan};
use crate::error::Error;

/// The collective of a run, with what a user should know of it.
pub struct Carrier {
    /// All ranks.
    pub collective: Box<dyn Collective>,
    /// Why it is not what was hoped for.
    pub warning: Option<String>,
}

/// Why a run cannot go on, with the collective to tell the others by.
pub struct Refused {
    /// The reason.
    pub error: Error,
    /// All ranks, over MPI.
    pub collective: Box<dyn Collective>,
}

/// Puts NCCL on top of `parent` if the plan wants it: `auto` where ranks compute on GPUs, and not
/// where they have to share one, for NCCL refuses that.
///
/// # Errors
/// If the plan asks for NCCL and this rank has no GPU, or NCCL cannot be used; with `auto` only if
/// it failed after it had begun.
///
/// # Collectives
/// Every rank must call it: those of [`NcclCollective::connect`].
pub fn carrier(
    plan: &Plan,
    device: Device,
    launch: &Launch,
    parent: Box<dyn Collective>,
) -> Result<Carrier, Box<Refused>> {
    let is_wanted = match plan.parallel.backend {
        Backend::Mpi => false,
        Backend::Auto => device != Device::Cpu && launch.world_size > 1,
        Backend::Nccl if device == Device::Cpu => {
            return Err(Box::new(Refused { error: Error::NcclWithoutGpu, collective: parent }));
        }
        Backend::Nccl => true,
    };
    if !is_wanted {
        return Ok(Carrier { collective: parent, warning: None });
    }
    match NcclCollective::connect(parent, launch.local_rank) {
        Ok(nccl) => Ok(Carrier { collective: Box::new(nccl), warning: None }),
        Err(refused) => {
            let (error, collective) = (refused.error, refused.parent);
            let all_ranks_know = matches!(error, grove_parallel::Error::Gpu(_));
            if all_ranks_know && plan.parallel.backend == Backend::Auto {
                let warning = format!("{error}; tensors go through the host over MPI instead");
                return Ok(Carrier { collective, warning: Some(warning) });
            }
            Err(Box::new(Refused { error: error.into(), collective }))
        }
    }
}
