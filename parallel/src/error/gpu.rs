//! Why a rank cannot take part in NCCL's collectives.

use crate::collective::Operation;

/// What is missing on this rank or on a peer, or does not fit between ranks and GPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// A shared library of CUDA is not there, or lacks a function.
    #[error("{library} is not usable: {reason}; looked for {names} in {searched}; {remedy}")]
    Library {
        /// What it is to the user.
        library: &'static str,
        /// What the loader said about the last name, or the function that is missing.
        reason: String,
        /// The file names that would do.
        names: String,
        /// Where they were looked for.
        searched: String,
        /// What to do.
        remedy: &'static str,
    },
    /// NCCL lacks what this crate needs.
    #[error(
        "NCCL {found} is older than {needed}; install a newer libnccl.so.2, \
         or set backend = \"mpi\", which stages through host memory"
    )]
    TooOld {
        /// The version of the library that was found.
        found: String,
        /// The oldest that would do.
        needed: String,
    },
    /// There is no GPU for this rank.
    #[error(
        "local rank {local_rank} needs GPU {local_rank}, and CUDA's driver shows {num_gpus}; \
         start at most one rank a GPU on each host"
    )]
    Missing {
        /// Number of the rank on its host, which is the number of its GPU.
        local_rank: usize,
        /// GPUs that the driver shows to this process.
        num_gpus: usize,
    },
    /// Two ranks would share a GPU.
    #[error(
        "rank {first_rank} and rank {second_rank} both use {gpu}; NCCL needs a GPU for each rank: \
         start one rank a GPU, or set backend = \"mpi\", which stages through host memory"
    )]
    Shared {
        /// The GPU's UUID as `nvidia-smi -L` prints it.
        gpu: String,
        /// The lowest rank on it.
        first_rank: usize,
        /// The next one.
        second_rank: usize,
    },
    /// Two ranks have different versions of NCCL.
    #[error(
        "rank {first_rank} has NCCL {first} and rank {second_rank} has {second}; \
         install one version on all hosts"
    )]
    VersionsDiffer {
        /// The lowest rank.
        first_rank: usize,
        /// Its version.
        first: String,
        /// The first rank whose version differs.
        second_rank: usize,
        /// That one's version.
        second: String,
    },
    /// This rank is ready, but a peer is not.
    #[error("rank {rank} cannot use NCCL; look for its own error")]
    Peer {
        /// The lowest rank that is not ready.
        rank: usize,
    },
    /// A tensor lies on a GPU that is not this rank's.
    #[error("{operation} `{name}`: the tensor is on {found}, and this rank's collective on {own}")]
    OtherDevice {
        /// The operation that was asked for.
        operation: Operation,
        /// The caller's name for the call.
        name: String,
        /// Device of the tensor.
        found: String,
        /// Device of the rank.
        own: String,
    },
}
