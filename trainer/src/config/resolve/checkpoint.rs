//! `[checkpoint]`: defaults and checks.

use super::super::plan::CheckpointPlan;
use super::super::run_config::CheckpointTable;
use super::Problems;
use crate::checkpoint::DEFAULT_MAX_SHARD_BYTES;

/// The plan of `[checkpoint]`.
pub(super) fn resolve(table: &CheckpointTable, problems: &mut Problems) -> CheckpointPlan {
    let keep_last = table.keep_last.unwrap_or(2);
    let remedy = "keep 1 or more, since the newest is the run's result";
    problems.require(keep_last > 0, "checkpoint.keep_last", keep_last, "must be above 0", remedy);
    let max_shard_bytes = table.max_shard_bytes.unwrap_or(DEFAULT_MAX_SHARD_BYTES);
    let remedy = "use 1 or more, such as 5000000000";
    let key = "checkpoint.max_shard_bytes";
    problems.require(max_shard_bytes > 0, key, max_shard_bytes, "must be above 0", remedy);
    CheckpointPlan {
        every: table.every.unwrap_or(0),
        keep_last,
        keep_every: table.keep_every.unwrap_or(0),
        max_shard_bytes,
        grace_seconds: table.grace_seconds.unwrap_or(0),
        resume: table.resume.unwrap_or(false),
        fallback: table.fallback.unwrap_or(false),
        allow_changes: table.allow_changes.clone().unwrap_or_default(),
    }
}
