//! The names of files and folders of a checkpoint, in one place.

use std::path::{Path, PathBuf};

/// The folder of checkpoints in a run folder.
const CHECKPOINTS: &str = "checkpoints";
/// A published checkpoint; the step follows.
const WHOLE_PREFIX: &str = "step-";
/// A folder being written or removed; the step follows.
const PARTIAL_PREFIX: &str = ".partial-step-";
/// A checkpoint that a newer one of the same step is about to replace; the step follows.
const REPLACED_PREFIX: &str = ".replaced-step-";

/// The manifest, at the top of a checkpoint.
pub(super) const MANIFEST: &str = "manifest.json";
/// The Hugging Face configuration.
pub(super) const CONFIG: &str = "config.json";
/// The Hugging Face weights, where they are in one file.
pub(super) const MODEL: &str = "model.safetensors";
/// Which of several files each Hugging Face weight is in.
pub(super) const MODEL_INDEX: &str = "model.safetensors.index.json";
/// The folder of what is Grove's own.
pub(super) const GROVE: &str = "grove";
/// The master weights.
pub(super) const MASTERS: &str = "grove/masters.safetensors";
/// The optimizer's state.
pub(super) const OPTIMIZER: &str = "grove/optimizer.safetensors";
/// The run's state.
pub(super) const RUN_STATE: &str = "grove/run.json";

/// In a run folder: a link to the newest checkpoint.
const LATEST: &str = "latest";
/// The same link before it takes its name.
const NEXT_LATEST: &str = ".latest-next";

/// One of several files of Hugging Face weights, `number` from 1.
pub(super) fn model_shard(number: usize, count: usize) -> String {
    format!("model-{number:05}-of-{count:05}.safetensors")
}

/// Whether a name beside `config.json` is one of Grove's own files.
pub(super) fn is_own_name(name: &str) -> bool {
    let is_model = name.starts_with("model") && name.contains(".safetensors");
    is_model || [CONFIG, MANIFEST, GROVE].contains(&name)
}

/// What a name in the folder of checkpoints stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A published checkpoint of this step.
    Whole(u64),
    /// A folder that is not, or no longer, a checkpoint.
    Partial(u64),
    /// The former checkpoint of this step.
    Replaced(u64),
}

impl Entry {
    /// Reads a folder name; `None` if it is none of ours.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (digits, entry): (_, fn(u64) -> Self) =
            if let Some(digits) = name.strip_prefix(WHOLE_PREFIX) {
                (digits, Self::Whole)
            } else if let Some(digits) = name.strip_prefix(PARTIAL_PREFIX) {
                (digits, Self::Partial)
            } else {
                (name.strip_prefix(REPLACED_PREFIX)?, Self::Replaced)
            };
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse().ok()).flatten().map(entry)
    }

    /// Where the entry is in a run folder.
    pub(super) fn path(self, run_folder: &Path) -> PathBuf {
        let (prefix, step) = match self {
            Self::Whole(step) => (WHOLE_PREFIX, step),
            Self::Partial(step) => (PARTIAL_PREFIX, step),
            Self::Replaced(step) => (REPLACED_PREFIX, step),
        };
        // Eight digits keep the names of any usual run in step order.
        checkpoints_folder(run_folder).join(format!("{prefix}{step:08}"))
    }
}

/// The link to a run's newest checkpoint, and its name while it is made.
pub(super) fn latest_link(run_folder: &Path) -> (PathBuf, PathBuf) {
    (run_folder.join(LATEST), run_folder.join(NEXT_LATEST))
}

/// Where that link leads for a step: relative, so that a run folder may be moved.
pub(super) fn latest_target(step: u64) -> PathBuf {
    Entry::Whole(step).path(Path::new(""))
}

/// The folder of checkpoints of a run.
pub(super) fn checkpoints_folder(run_folder: &Path) -> PathBuf {
    run_folder.join(CHECKPOINTS)
}
