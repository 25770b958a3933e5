//! What can go wrong in a run, beside what the rooms and the config report themselves.

use std::path::PathBuf;

use crate::config::{Change, Meaning, how_to_allow};

/// An error of the trainer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A step went wrong, and the guards end the run.
    #[error(
        "step {step} {}: the loss is {loss} and the gradient norm {grad_norm}; nothing was \
         updated{}{}. Lower optim.lr, lengthen schedule.warmup_steps, resume with \
         guard.exclude_steps = [{excluded_step}], or set guard.non_finite or guard.spike to \
         \"skip\" or \"rewind\"",
        .trip.describe(),
        if *trips > 1 { format!(", as at {} steps before it (guard.max_trips)", trips - 1) }
        else { String::new() },
        .black_box.as_ref().map_or(String::new(), |folder| format!(
            "; its batch and norms are in {}, see grove replay", folder.display()
        )),
    )]
    Tripped {
        /// The step, from 1.
        step: u64,
        /// How it went wrong.
        trip: crate::metrics::Trip,
        /// Mean loss over the step's tokens.
        loss: f64,
        /// Norm of the mean gradient.
        grad_norm: f64,
        /// Steps that went wrong in a row, this one included.
        trips: u64,
        /// What to exclude to do without its data.
        excluded_step: u64,
        /// The folder with what is known of it, if it could be written.
        black_box: Option<PathBuf>,
    },
    /// The checkpoint that a rewind was to go back to is gone.
    #[error(
        "cannot go back to the checkpoint of step {step}, which is gone or damaged; resume from an \
         earlier one, or set guard.snapshot_every to keep the last good state in memory"
    )]
    RewindLost {
        /// Its step.
        step: u64,
    },
    /// Data to be left out has been used.
    #[error(
        "guard.exclude_steps has {step}, but the data of step {step} has been trained on by step \
         {done}, from which this run resumes; resume from an earlier checkpoint or remove {step}"
    )]
    ExcludedTooLate {
        /// The step, from 1, whose data it is.
        step: u64,
        /// Steps done.
        done: u64,
    },
    /// No token of a step counts.
    #[error(
        "step {step}: none of its tokens is a target that counts, so that there is no loss; \
         expected a target in some row; use larger batches, another data.packing, or longer documents"
    )]
    NoTargets {
        /// The step, from 1.
        step: u64,
    },
    /// The config asks for CUDA and there is none.
    #[error("device = \"cuda\", but {reason}; use device = \"auto\" or \"cpu\", or {remedy}")]
    NoCuda {
        /// What is missing.
        reason: String,
        /// What would provide it.
        remedy: &'static str,
    },
    /// More ranks on this host than GPUs.
    #[error(
        "local rank {local_rank} has no GPU of its own: this host has {num_gpus}; start at most \
         {num_gpus} ranks on it"
    )]
    TooFewGpus {
        /// The rank's number on its host, from 0.
        local_rank: usize,
        /// GPUs that libtorch sees.
        num_gpus: usize,
    },
    /// The GPU has no products of 8-bit numbers.
    #[error(
        "gpu.fp8 needs a GPU of compute capability 8.9 (Ada, Hopper) or newer, found {major}.{minor}; \
         set gpu.fp8 = \"off\""
    )]
    NoFp8 {
        /// The first number of the GPU's compute capability.
        major: i32,
        /// The second.
        minor: i32,
    },
    /// The kernels of the layers cannot be had.
    #[error(transparent)]
    Kernels(#[from] crate::cuda::CudaError),
    /// Tokens of another vocabulary than the model's.
    #[error(
        "{path} has token ids below {found}, but model.vocab_size = {expected}; set \
         model.vocab_size = {found} or tokenize with the model's tokenizer"
    )]
    Vocabulary {
        /// The token file.
        path: PathBuf,
        /// `model.vocab_size`.
        expected: usize,
        /// The file's vocabulary size.
        found: usize,
    },
    /// A teacher that does not go with the model.
    #[error(
        "the teacher {path} has {key} {found}, but this run needs {expected}; use a teacher of the \
         same vocabulary and tokenizer that sees whole sequences, or remove [distill]"
    )]
    Teacher {
        /// `distill.teacher`.
        path: PathBuf,
        /// What differs.
        key: &'static str,
        /// The teacher's.
        found: String,
        /// The run's.
        expected: String,
    },
    /// The tokenizer has ids that the model does not.
    #[error(
        "the tokenizer {tokenizer} has {found} ids, but the model's vocab_size is {expected}; use \
         the tokenizer that the model was trained with"
    )]
    Tokenizer {
        /// The tokenizer's description.
        tokenizer: String,
        /// The model's vocabulary size.
        expected: usize,
        /// The tokenizer's.
        found: usize,
    },
    /// A new run in the folder of an old one.
    #[error(
        "run.dir {dir} already holds a run with {checkpoints} checkpoint(s), the last at step \
         {last_step}; continue it with --resume, choose another run.dir, or remove the folder"
    )]
    RunExists {
        /// The run's folder.
        dir: PathBuf,
        /// How many checkpoints it holds.
        checkpoints: usize,
        /// The step of the last one.
        last_step: u64,
    },
    /// A resume that would change what the run means.
    #[error(
        "{checkpoint} is of a run with another meaning; these keys differ:\n{}\nrestore them, start \
         a new run in another run.dir, or allow it with {}{}",
        .changes.iter().map(|c| format!("  {c}")).collect::<Vec<_>>().join("\n"),
        how_to_allow(.changes.iter().map(|change| change.meaning)),
        other_ways(changes)
    )]
    PlanChanged {
        /// The checkpoint's folder.
        checkpoint: PathBuf,
        /// Each key.
        changes: Vec<Change>,
    },
    /// A resume from tokens other than those trained on.
    #[error(
        "{path} is not the data that {checkpoint} was trained on: its fingerprint is {found}, \
         expected {expected}; restore the file, start a new run in another run.dir, or allow it with \
         {}",
        how_to_allow(std::iter::once(Meaning::Data))
    )]
    DataChanged {
        /// The token file.
        path: PathBuf,
        /// The checkpoint's folder.
        checkpoint: PathBuf,
        /// The fingerprint in the checkpoint.
        expected: String,
        /// The file's fingerprint.
        found: String,
    },
    /// The newest checkpoint is damaged, and an older one is not wanted.
    #[error("{reason}; set checkpoint.fallback = true to go on from step {fallback}")]
    NewestDamaged {
        /// What is wrong with it.
        reason: String,
        /// The step of the newest that is not known to be damaged.
        fallback: u64,
    },
    /// Another process writes the run's folder.
    #[error(
        "run.dir {dir} is being written by {holder}; wait for it or end it, or choose another run.dir"
    )]
    RunLocked {
        /// The run's folder.
        dir: PathBuf,
        /// Process, host and time.
        holder: String,
    },
    /// The record of a mixture's weights is not one.
    #[error(
        "{checkpoint}: data_stages of its run state cannot be read: {message}; expected what this \
         version writes; resume from an earlier checkpoint"
    )]
    DamagedStages {
        /// The checkpoint's folder.
        checkpoint: PathBuf,
        /// The parser's message.
        message: String,
    },
    /// A run to be resumed has checkpoints, and none can be used.
    #[error(
        "run.dir {dir} has no checkpoint that can be used:\n{}\nrestore one, or remove them to \
         start anew",
        .damaged.iter().map(|d| format!("  {}", d.error)).collect::<Vec<_>>().join("\n")
    )]
    AllDamaged {
        /// The run's folder.
        dir: PathBuf,
        /// What is wrong with each.
        damaged: Vec<crate::checkpoint::Damaged>,
    },
    /// NCCL moves device memory only.
    #[error(
        "parallel.backend = \"nccl\", but this rank computes on the CPU; set device = \"cuda\" on \
         hosts with a GPU for each rank, or parallel.backend to \"mpi\" or \"auto\""
    )]
    NcclWithoutGpu,
    /// Some ranks compute on GPUs and some do not.
    #[error(
        "rank {with} computes on a GPU and rank {without} on the CPU; set device = \"cuda\" to learn \
         what rank {without} lacks, or device = \"cpu\" for all"
    )]
    MixedDevices {
        /// The lowest rank with a GPU.
        with: usize,
        /// The lowest rank without.
        without: usize,
    },
    /// Ranks are about to train different things.
    #[error(
        "rank {rank} differs from rank 0 in {what}; start all ranks with the same config and \
         program, and give them the same run.dir and data (a folder that every host sees)"
    )]
    RanksDiffer {
        /// What differs.
        what: &'static str,
        /// The first rank that does.
        rank: usize,
    },
    /// There is nothing to continue.
    #[error("sample.prompt has no tokens; give at least one character")]
    EmptyPrompt,
    /// The last checkpoint of a run could not be saved.
    #[error("step {step}: {reason}")]
    NotSaved {
        /// The step.
        step: u64,
        /// What the lowest rank that failed says.
        reason: String,
    },
    /// A file or folder operation failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The model's config.
    #[error(transparent)]
    Model(#[from] crate::model::config::ModelConfigError),
    /// The data room's.
    #[error(transparent)]
    Data(#[from] grove_data::Error),
    /// The optimizer room's.
    #[error(transparent)]
    Optim(#[from] grove_optim::Error),
    /// The parallel room's.
    #[error(transparent)]
    Parallel(#[from] grove_parallel::Error),
    /// The growth module's.
    #[error(transparent)]
    Growth(#[from] crate::growth::Error),
    /// The checkpoint module's.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// The exchange module's.
    #[error(transparent)]
    Exchange(#[from] crate::exchange::Error),
    /// The weights to start from are of another model.
    #[error(
        "{from} (init.from) is another model than [model] says; these keys differ:\n{}\nmake \
         [model] equal to it",
        .differences.iter().map(|d| format!("  {d}")).collect::<Vec<_>>().join("\n")
    )]
    OtherModel {
        /// What the weights were to come from.
        from: PathBuf,
        /// One line for each key.
        differences: Vec<String>,
    },
    /// The config module's.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
}

/// What else would let a run go on with some of the changes of [`Error::PlanChanged`].
fn other_ways(changes: &[Change]) -> String {
    let any = |prefix: &str| changes.iter().any(|change| change.text.starts_with(prefix));
    let mut ways = String::new();
    if any("optim.") {
        ways += "; optim.on_change = \"reset\" goes on with new optimizer state";
    }
    if any("schedule.") || any("run.steps") {
        ways += "; schedule.from_step = the checkpoint's step begins another schedule there";
    }
    ways
}

impl Error {
    /// Whether every rank finds this by itself, so that one of them is enough to tell it.
    pub fn is_common(&self) -> bool {
        matches!(
            self,
            Self::Tripped { .. }
                | Self::NoTargets { .. }
                | Self::ExcludedTooLate { .. }
                | Self::RewindLost { .. }
                | Self::NotSaved { .. }
                | Self::RanksDiffer { .. }
                | Self::MixedDevices { .. }
                | Self::PlanChanged { .. }
                | Self::DataChanged { .. }
                | Self::Growth(_)
        )
    }
}
