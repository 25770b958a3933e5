//! What can go wrong with a checkpoint, and what can be wrong in one.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::TensorSpec;

/// Why a checkpoint could not be saved or read.
///
/// The operating system's error is part of the message and therefore not repeated as a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder of a new checkpoint could not be written.
    #[error("cannot save a checkpoint, writing {}: {cause}; the checkpoint takes {needed_bytes} \
        bytes; free space or fix permissions; earlier checkpoints are untouched", path.display())]
    Save {
        /// The file or folder.
        path: PathBuf,
        /// Bytes the whole checkpoint takes.
        needed_bytes: u64,
        /// What the operating system said.
        cause: io::Error,
    },
    /// What was to be saved contradicts itself.
    #[error("cannot save tensor {tensor:?} in {file}: {reason}")]
    Record {
        /// The file in the checkpoint.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An extra file would not be beside `config.json`, or would overwrite a file of Grove's.
    #[error(
        "cannot save extra file {name:?}: expected a plain file name other than config.json, \
        manifest.json, grove and those of model files"
    )]
    ExtraFileName {
        /// The name that was asked for.
        name: String,
    },
    /// A file or folder could not be read or removed.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The folder has no manifest.
    #[error("{} is not a checkpoint of Grove: it has no manifest.json; it is a plain Hugging Face \
        model, or a save that did not end", folder.display())]
    NoManifest {
        /// The folder.
        folder: PathBuf,
    },
    /// A JSON file does not have the form it must have.
    #[error("cannot understand {}: {reason}; the file is damaged, or of another version of Grove",
        path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        reason: String,
    },
    /// Files are not what the manifest says.
    #[error("checkpoint {} is damaged: {}; use an earlier checkpoint",
        folder.display(), join(findings))]
    Damaged {
        /// The checkpoint.
        folder: PathBuf,
        /// All that is wrong, in file order.
        findings: Vec<Finding>,
    },
    /// A file is no safetensors file.
    #[error("cannot read tensors from {}: {reason}; expected a safetensors file", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A tensor has an element type that Grove does not use.
    #[error("tensor {tensor:?} in {} has dtype {found}; expected U8, BF16, F16, F32 or F64",
        path.display())]
    UnknownDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its element type.
        found: String,
    },
    /// A tensor that was asked for is not there.
    #[error("no tensor {tensor:?} in {}, which has {count} tensors", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// How many tensors there are.
        count: usize,
    },
    /// A file's tensors are not those of the model.
    #[error("the tensors of {} are not those of the model: {}; load it with the configuration it \
        was saved with", path.display(), join(mismatches))]
    Names {
        /// The file.
        path: PathBuf,
        /// All differences, in name order.
        mismatches: Vec<Mismatch>,
    },
    /// Tensors to be hashed are not in the one order that defines the hash.
    #[error("cannot hash: tensor {second:?} follows {first:?}; expected each name once, ascending")]
    HashOrder {
        /// The earlier tensor.
        first: String,
        /// The later tensor.
        second: String,
    },
    /// There are no masters to hash.
    #[error("{} has no grove/masters.safetensors: a plain Hugging Face model has no masters to \
        hash; give a checkpoint that grove train wrote", folder.display())]
    NoMasters {
        /// The folder.
        folder: PathBuf,
    },
}

/// One way in which a file is not what the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The file is not there.
    Missing {
        /// Its path in the checkpoint.
        file: String,
    },
    /// The file has another size: it was cut, or written over.
    Size {
        /// Its path in the checkpoint.
        file: String,
        /// Bytes by the manifest.
        expected_bytes: u64,
        /// Bytes found.
        found_bytes: u64,
    },
    /// The file has the right size and other content.
    Content {
        /// Its path in the checkpoint.
        file: String,
        /// Hash by the manifest.
        expected_sha256: String,
        /// Hash found.
        found_sha256: String,
    },
    /// The manifest does not name the file.
    Foreign {
        /// Its path in the checkpoint.
        file: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { file } => write!(formatter, "{file} is missing"),
            Self::Size { file, expected_bytes, found_bytes } => {
                write!(formatter, "{file} has {found_bytes} bytes, expected {expected_bytes}")
            }
            Self::Content { file, expected_sha256, found_sha256 } => {
                write!(formatter, "{file} has sha256 {found_sha256}, expected {expected_sha256}")
            }
            Self::Foreign { file } => write!(formatter, "{file} is not in manifest.json"),
        }
    }
}

/// One difference between the tensors of a file and those of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The model has it, the file does not.
    Missing {
        /// What the model expects.
        expected: TensorSpec,
    },
    /// The file has it, the model does not.
    Extra {
        /// What the file has.
        found: TensorSpec,
    },
    /// Both have it, with another dtype or shape.
    Differs {
        /// What the model expects.
        expected: TensorSpec,
        /// What the file has.
        found: TensorSpec,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { expected } => {
                write!(formatter, "{} is missing (expected {expected})", expected.name)
            }
            Self::Extra { found } => write!(formatter, "{} is extra ({found})", found.name),
            Self::Differs { expected, found } => {
                write!(formatter, "{} is {found}, expected {expected}", expected.name)
            }
        }
    }
}

/// Joins what was found with `; `.
fn join(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
