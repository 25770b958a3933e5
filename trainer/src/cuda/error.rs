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
