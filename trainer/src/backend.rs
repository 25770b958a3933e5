//! What carries tensors between ranks: MPI from the start, and NCCL on top where there are GPUs.

use grove_parallel::collective::NcclCollective;
use grove_parallel::{Collective, Launch};
use tch::{Device, Kind, Tensor};

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
/// If only some ranks have a GPU, if the plan asks for NCCL and this rank has no GPU, or NCCL cannot
/// be used; with `auto` only if it failed after it had begun.
///
/// # Collectives
/// Every rank must call it: an all-gather, and those of [`NcclCollective::connect`].
pub fn carrier(
    plan: &Plan,
    device: Device,
    launch: &Launch,
    parent: Box<dyn Collective>,
) -> Result<Carrier, Box<Refused>> {
    if let Err(error) = require_like_devices(device, &*parent) {
        return Err(Box::new(Refused { error, collective: parent }));
    }
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

/// Refuses ranks of which some compute on GPUs and some do not: they could not talk by NCCL, and
/// would not compute the same bits.
fn require_like_devices(device: Device, parent: &dyn Collective) -> Result<(), Error> {
    let mine = Tensor::from_slice(&[i64::from(device != Device::Cpu)]);
    let all = Tensor::zeros([parent.degree() as i64], (Kind::Int64, Device::Cpu));
    parent.all_gather(&mine, &all, "which ranks compute on GPUs")?.wait()?;
    let all: Vec<i64> = Vec::try_from(all).expect("a vector of i64");
    match (all.iter().position(|&gpu| gpu == 1), all.iter().position(|&gpu| gpu == 0)) {
        (Some(with), Some(without)) => Err(Error::MixedDevices { with, without }),
        _ => Ok(()),
    }
}
