//! `[init]` and the stages of `[[growth]]` as written, and the check of a stage's keys against the
//! one table of keys: those of `[init.growth]`, and under `model.` those of `[model]`.

use std::path::PathBuf;

use serde::Deserialize;
use toml::{Table, Value};

use super::check::{mismatch, type_name};
use super::error::ConfigError;
use super::layers::{described, flatten};
use super::schema::{self, Kind};
use super::{DepthGrowth, InitScheme, MomentGrowth, PhaseMode, ResidualGrowth, WidthGrowth};

/// The keys that a stage has of its own.
const OWN: [(&str, Kind); 2] =
    [("at_step", Kind::Count), ("schedule", Kind::OneOf(&["continue", "fresh", "rewind"]))];

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InitTable {
    pub(super) scheme: Option<InitScheme>,
    pub(super) from: Option<PathBuf>,
    pub(super) growth: Option<GrowthTable>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub(super) struct GrowthTable {
    pub(super) depth: Option<DepthGrowth>,
    pub(super) width: Option<WidthGrowth>,
    pub(super) residual: Option<ResidualGrowth>,
    pub(super) split_std: Option<f64>,
    pub(super) learn_steps: Option<u64>,
    pub(super) moments: Option<MomentGrowth>,
    pub(super) mask_steps: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct GrowthStageTable {
    pub(super) at_step: u64,
    pub(super) schedule: Option<PhaseMode>,
    #[serde(default)]
    pub(super) model: Table,
    #[serde(flatten)]
    pub(super) growth: GrowthTable,
}

/// What is wrong with the keys of stages and their types.
pub(super) fn problems(stages: &Value, origin: &str) -> Vec<ConfigError> {
    let stages = stages.as_array().map(Vec::as_slice).unwrap_or_default();
    let tables = stages.iter().enumerate().filter_map(|(index, stage)| {
        stage.as_table().map(|table| problems_of(index, table, origin))
    });
    tables.flatten().collect()
}

fn problems_of(index: usize, stage: &Table, origin: &str) -> Vec<ConfigError> {
    let mut problems = Vec::new();
    let full = |key: &str| format!("growth[{index}].{key}");
    for (key, value) in flatten(stage.clone()) {
        let kind = OWN.iter().find(|(own, _)| *own == key).map(|(_, kind)| *kind);
        let listed = match key.strip_prefix("model.") {
            Some(_) => schema::find(&key),
            None => schema::find(&format!("init.growth.{key}")),
        };
        match kind.or(listed.map(|key| key.kind)) {
            None => problems.push(ConfigError::UnknownKey {
                key: full(&key),
                origin: origin.to_owned(),
                nearest: None,
            }),
            Some(kind) => {
                if let Some(expected) = mismatch(kind, &value) {
                    let (key, found) = (full(&key), described(&value));
                    let origin = origin.to_owned();
                    problems.push(ConfigError::WrongType { key, origin, expected, found });
                }
            }
        }
    }
    if !stage.contains_key("at_step") {
        problems.push(ConfigError::MissingKey {
            key: full("at_step"),
            origin: origin.to_owned(),
            about: format!("the last step before the model grows, {}", type_name(Kind::Count)),
        });
    }
    problems
}
