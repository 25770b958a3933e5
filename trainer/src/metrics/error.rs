//! What can go wrong while metrics are written; none of it may end a run.

use std::io;
use std::path::PathBuf;

/// Why a sink could not do its work.
///
/// The operating system's error is part of the message and therefore not repeated as a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be created, read or replaced.
    #[error("cannot open {}: {cause}; free space or fix its permissions", path.display())]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// A record could not be appended; the file ends with the last whole record.
    #[error("cannot append to {}: {cause}; free space and later records are written again",
        path.display())]
    Append {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// A record could not be put into bytes.
    #[error("cannot encode the record of step {step} for {}: {reason}", path.display())]
    Encode {
        /// The file it was meant for.
        path: PathBuf,
        /// The step of the record.
        step: u64,
        /// What the encoder said.
        reason: String,
    },
}
