//! What can go wrong when a model comes in or goes out.

use std::io;
use std::path::PathBuf;

use crate::model::config::ResidualForm;

/// Why a model could not be imported or exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path holds no model of a known form.
    #[error(
        "{} holds no model that can be read: {reason}; expected a checkpoint, a run's folder, a \
         Hugging Face folder with config.json and safetensors, or a GGUF file", path.display()
    )]
    NoModel {
        /// What was given.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// What a growth has added stands behind masks that are not 1 yet.
    #[error(
        "{} is of step {step}, when masks over what growth has added are still below 1, so that its \
         optimizer's state is not that of the model's weights; grow a checkpoint of step {until} or \
         later, or what grove export makes of this one", folder.display()
    )]
    Masked {
        /// The checkpoint.
        folder: PathBuf,
        /// Its step.
        step: u64,
        /// The step at which the masks are 1.
        until: u64,
    },
    /// No architecture in transformers computes the model.
    #[error(
        "{} cannot be exported: transformers has no architecture with its model.residual (norm {:?}, \
         gain {:?}, skip {:?}, scalar_biases {}); use it as a checkpoint, which grove eval, grove sample \
         and init.from read", path.display(), .form.norm, .form.gain, .form.skip, .form.scalar_biases
    )]
    NoArchitecture {
        /// The checkpoint.
        path: PathBuf,
        /// Its residual form.
        form: ResidualForm,
    },
    /// The tensors are not those of the model.
    #[error("the tensors of {} are not those of its model:\n{}", path.display(),
        .problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n"))]
    Tensors {
        /// The file or folder.
        path: PathBuf,
        /// All that is missing, extra, or of another form, in name order.
        problems: Vec<String>,
    },
    /// The list of shards contradicts itself or the shards.
    #[error("cannot use {}: {reason}; expected the list of shards that transformers writes",
        path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF file is damaged, or uses what is not supported.
    #[error("cannot read {} at byte {byte}: {reason}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// Where in it.
        byte: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A GGUF file's key is missing or has another value than is supported.
    #[error("{}: {key} is {found}; expected {expected}", path.display())]
    GgufKey {
        /// The file.
        path: PathBuf,
        /// The key of its metadata.
        key: String,
        /// Its value, or `missing`.
        found: String,
        /// What is supported.
        expected: String,
    },
    /// There is something where the result is to be written.
    #[error("{} is already there; choose another folder, or remove it", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A value is not a number, or infinite.
    #[error(
        "tensor {tensor:?} of {} holds {count} values that are infinite or not numbers; such a \
         model cannot be trained on", path.display()
    )]
    NotFinite {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// How many of its values.
        count: usize,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The checkpoint module's.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// The model's config.
    #[error(transparent)]
    Model(#[from] crate::model::config::ModelConfigError),
}
