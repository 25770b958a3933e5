//! `[loss]`: defaults and ranges.

use super::{Problems, Shown};
use crate::config::plan::LossPlan;
use crate::config::run_config::LossTable;

pub(super) fn resolve(table: &LossTable, problems: &mut Problems) -> LossPlan {
    let z_loss = table.z_loss.unwrap_or(0.0);
    problems.require_not_negative("loss.z_loss", z_loss, "use 0 for none, or about 1e-4");
    let label_smoothing = table.label_smoothing.unwrap_or(0.0);
    problems.require(
        (0.0..1.0).contains(&label_smoothing),
        "loss.label_smoothing",
        Shown(label_smoothing),
        "is not a part from 0 up to 1",
        "use 0 for none, or about 0.1",
    );
    LossPlan { z_loss, label_smoothing }
}
