//! What the ranks tell each other before they join in NCCL: who is ready, and on which GPU.
//! NCCL itself would wait for a missing rank, and refuse a shared GPU in words that name neither.

use tch::{Device, Kind, Tensor};

use super::library::Version;
use crate::{
    collective::Collective,
    error::{GpuError, Result},
};

/// Words of a rank's record: ready or not, the GPU's UUID, NCCL's version.
const RECORD_WORDS: usize = 4;

/// The bytes by which ranks find each other.
pub(super) const ID_BYTES: usize = 128;

/// What a rank that is ready brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    /// UUID of the GPU, which no other GPU anywhere has.
    pub(super) uuid: [u8; 16],
    pub(super) version: Version,
}

/// Tells the peers whether this rank is ready, and checks that all are and fit together.
///
/// # Collectives
/// Every rank of `parent` must call; one all-gather.
///
/// # Errors
/// [`GpuError::Peer`], [`GpuError::Shared`] and [`GpuError::VersionsDiffer`], on all ready ranks
/// alike; those of the parent.
pub(super) fn meet(parent: &dyn Collective, own: Option<Ready>) -> Result<()> {
    let words = encode(own);
    let gathered =
        Tensor::zeros([(parent.degree() * RECORD_WORDS) as i64], (Kind::Int64, Device::Cpu));
    parent.all_gather(&Tensor::from_slice(&words), &gathered, "ready for NCCL")?.wait()?;
    let words = Vec::<i64>::try_from(&gathered).expect("a host tensor of i64 with one dim");
    let ranks: Vec<Option<Ready>> = words.chunks_exact(RECORD_WORDS).map(decode).collect();
    Ok(check(&ranks)?)
}

/// Gives every rank the id that rank 0 made, or `None` if it made none.
///
/// # Collectives
/// Every rank of `parent` must call; one broadcast.
///
/// # Errors
/// [`GpuError::Peer`] if rank 0 has no id; those of the parent.
pub(super) fn share_id(
    parent: &dyn Collective,
    id: Option<[u8; ID_BYTES]>,
) -> Result<[u8; ID_BYTES]> {
    // The first byte says whether there is an id.
    let mut message = [0; 1 + ID_BYTES];
    if let Some(id) = id {
        message[0] = 1;
        message[1..].copy_from_slice(&id);
    }
    let tensor = Tensor::from_slice(&message);
    parent.broadcast(&tensor, 0, "NCCL's id")?.wait()?;
    let message = Vec::<u8>::try_from(&tensor).expect("a host tensor of u8 with one dim");
    match message.split_first() {
        Some((1, id)) => Ok(id.try_into().expect("the message has one byte more than the id")),
        _ => Err(GpuError::Peer { rank: 0 }.into()),
    }
}

fn encode(own: Option<Ready>) -> [i64; RECORD_WORDS] {
    let Some(Ready { uuid, version }) = own else { return [0; RECORD_WORDS] };
    let uuid = u128::from_be_bytes(uuid);
    [1, (uuid >> 64) as i64, uuid as i64, i64::from(version.0)]
}

fn decode(words: &[i64]) -> Option<Ready> {
    let uuid = (u128::from(words[1] as u64) << 64) | u128::from(words[2] as u64);
    let version = Version(i32::try_from(words[3]).unwrap_or(0));
    (words[0] == 1).then_some(Ready { uuid: uuid.to_be_bytes(), version })
}

/// Checks that all ranks are there, each with a GPU of its own, and one version of NCCL.
fn check(ranks: &[Option<Ready>]) -> std::result::Result<(), GpuError> {
    let ready = |(rank, ready): (usize, &Option<Ready>)| ready.ok_or(GpuError::Peer { rank });
    let ranks: Vec<Ready> =
        ranks.iter().enumerate().map(ready).collect::<std::result::Result<_, _>>()?;
    for (second_rank, second) in ranks.iter().enumerate() {
        if let Some(first_rank) = ranks[..second_rank].iter().position(|r| r.uuid == second.uuid) {
            let gpu = uuid_text(second.uuid);
            return Err(GpuError::Shared { gpu, first_rank, second_rank });
        }
        if second.version != ranks[0].version {
            let (first, second) = (ranks[0].version.to_string(), second.version.to_string());
            return Err(GpuError::VersionsDiffer { first_rank: 0, first, second_rank, second });
        }
    }
    Ok(())
}

/// A UUID as `nvidia-smi -L` prints it.
fn uuid_text(uuid: [u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests;
