//! The weights of a run over its steps: those of the plan, and what a resumed run keeps of the past.

use std::collections::BTreeMap;

use grove_data::{Stage, with_weights_from};
use serde::{Deserialize, Serialize};

use crate::config::{DataSource, Plan};

/// The stages of a run, at steps of the data order (see [`super::place`]). What the run drew before
/// `step`, as `recorded` by its checkpoint, stays; from there on the plan's weights hold. A run that
/// starts has nothing recorded.
pub fn stages(plan: &Plan, recorded: &[Stage], step: u64) -> Vec<Stage> {
    let (planned, step) = (planned(plan), order_step(plan, step));
    if recorded.is_empty() || step == 0 {
        return planned;
    }
    let now = |stages: &[Stage]| -> BTreeMap<String, f64> {
        let begun = stages.iter().rev().find(|stage| stage.first_step <= step);
        let weights = begun.map(|stage| stage.weights.clone()).unwrap_or_default();
        weights.into_iter().filter(|(_, weight)| *weight > 0.0).collect()
    };
    let mut stages: Vec<Stage> =
        recorded.iter().filter(|stage| stage.first_step <= step).cloned().collect();
    if now(recorded) != now(&planned) {
        stages = with_weights_from(&stages, step, now(&planned));
    }
    stages.extend(planned.into_iter().filter(|stage| stage.first_step > step));
    stages
}

/// The stages that the plan alone asks for; none but for a mixture.
fn planned(plan: &Plan) -> Vec<Stage> {
    let DataSource::Sources(sources) = &plan.data.source else { return Vec::new() };
    let weights = sources.iter().map(|source| (source.name.clone(), source.weight)).collect();
    let mut stages = vec![Stage { first_step: 0, weights }];
    for stage in &plan.data.stages {
        let (first_step, weights) = (order_step(plan, stage.from_step), stage.weights.clone());
        // Of stages that a ramp brings to one step the last holds.
        stages.retain(|before| before.first_step < first_step);
        stages.push(Stage { first_step, weights });
    }
    stages
}

/// The first step of the data order that step `step` of the run, or a later one, begins with.
pub fn order_step(plan: &Plan, step: u64) -> u64 {
    let ramp = plan.batch.ramp();
    ramp.before(step).div_ceil(ramp.full())
}

/// Stages as the state of a run records them: TOML, whose numbers are read back bit for bit.
#[derive(Serialize, Deserialize)]
struct Recorded {
    #[serde(default)]
    stages: Vec<Stage>,
}

/// The text that records stages.
pub fn stages_to_toml(stages: &[Stage]) -> String {
    let recorded = Recorded { stages: stages.to_vec() };
    toml::to_string(&recorded).expect("stages hold only TOML types, and steps fit in i64")
}

/// Reads what [`stages_to_toml`] wrote; nothing from the record of a run before there were stages.
///
/// # Errors
/// The parser's message.
pub fn stages_from_toml(text: &str) -> Result<Vec<Stage>, String> {
    let recorded: Recorded = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    Ok(recorded.stages)
}
