//! What keeps kernels from a GPU.

/// Why the kernels cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A library of NVIDIA is not there.
    #[error("{library} was not found; install it, or set gpu.fused = false to do without")]
    Library {
        /// Which.
        library: &'static str,
    },
    /// A function of libtorch that is called by name is not there.
    #[error(
        "this libtorch has no {name}, which is called by that name for gpu.attention or gpu.graphs; use 2.11, \
         which scripts/setup fetches"
    )]
    Switch {
        /// The name in the library.
        name: String,
    },
    /// A function of the driver or the compiler failed.
    #[error("{function} failed with {code}: {message}; gpu.fused = false does without it")]
    Refused {
        /// Which.
        function: &'static str,
        /// Its number for what happened.
        code: u32,
        /// Its words for it.
        message: String,
    },
}
