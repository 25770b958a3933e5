//! Checkpoints: folders that are always a Hugging Face model and always whole.
//!
//! ```text
//! <run>/checkpoints/step-00000020/
//!   config.json  model.safetensors  tokenizer.json ...   what any Hugging Face tool loads; a large
//!                                                        model in several files with an index
//!   grove/masters.safetensors                            masters in fp32 or fp64, by parameter
//!   grove/optimizer.safetensors                          optimizer state, `<kind>/<parameter>`
//!   grove/run.json                                       where the run was: [`RunStateRecord`]
//!   manifest.json                                        size and sha256 of each file above
//! ```
//!
//! A checkpoint is written into a `.partial-` folder, put on the disk and published by one
//! rename; `manifest.json` is written last. So a folder named `step-` whose files have the sizes
//! of its manifest is whole, and `<run>/latest` leads to the newest one. Tensors are stored by
//! parameter name and whole, so a checkpoint loads at any rank count and ZeRO stage. The ranks write
//! side by side: what goes where follows from names and shapes alone ([`Blueprint`]). Nothing here knows tensors of the compute library:
//! bytes go in and come out.

mod blueprint;
mod diff;
mod error;
mod faults;
mod find;
mod hash;
mod inventory;
mod layout;
mod manifest;
mod open;
mod record;
mod retain;
mod save;
mod selection;
mod small_files;
mod snapshot;
mod staging;
mod tensor_file;
mod tensor_layout;
#[cfg(test)]
mod tests;

pub use blueprint::{Blueprint, DEFAULT_MAX_SHARD_BYTES, Part, TensorList};
pub use diff::{Difference, SettingDifference, TensorDifference, diff};
pub use error::{Error, Finding, Mismatch};
pub use faults::{Fault, faults};
pub use find::{Damaged, Survey, Whole, folder_of, latest, list, point_latest, survey};
pub use hash::{hash_masters, hash_tensors};
pub use inventory::{Condition, Item, inventory};
pub(crate) use manifest::stays_below;
pub use open::Checkpoint;
pub use record::{AllowedChange, Dtype, RunStateRecord, TensorRecord, TensorSpec};
pub use retain::{clear_stale, prune};
pub use save::{Contents, save};
pub use selection::{Keep, remove_all, superfluous};
pub use small_files::{ExtraFile, SmallFiles};
pub use snapshot::{HeldBytes, Snapshot};
pub use staging::Staging;
pub(crate) use tensor_file::map_file;
pub use tensor_file::{TensorFile, TensorView};
