//! What the weights of a new run start from: random values, or another model's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use grove_parallel::layout::Segment;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::checkpoint::Dtype;
use crate::config::Plan;
use crate::error::Error;
use crate::exchange::Source;
use crate::model::compute::Compute;
use crate::model::config::ModelConfig;
use crate::state::{RunState, UnitState};

/// Keys of a model that do not change what its weights compute.
const HARMLESS: [&str; 2] = ["initializer_range", "max_position_embeddings"];

/// Fills the weights of a new run: drawn by the seed, or those that `init.from` names, of which
/// every rank reads what it owns. Optimizer state starts as in any new run.
///
/// # Errors
/// If that model cannot be read, or is another one than the plan's.
pub fn start(plan: &Plan, compute: &Compute, state: &mut RunState) -> Result<(), Error> {
    let Some(from) = &plan.init.from else {
        state.initialize(compute, plan.seed);
        return Ok(());
    };
    let source = Source::open(from)?;
    let differences = differences(&source.config, &plan.model);
    if !differences.is_empty() {
        return Err(Error::OtherModel { from: Path::new(from).to_owned(), differences });
    }
    state.start_from(|unit| fill_masters(unit, &source))
}

/// The keys in which two models differ, each as `key: the first's, here the second's`.
fn differences(source: &ModelConfig, plan: &ModelConfig) -> Vec<String> {
    let [source, plan] = [source, plan].map(keys);
    let all: BTreeSet<&String> = source.keys().chain(plan.keys()).collect();
    let shown = |side: &BTreeMap<String, Value>, key: &str| {
        side.get(key).map_or_else(|| "not set".to_owned(), Value::to_string)
    };
    all.into_iter()
        .filter(|key| !HARMLESS.contains(&key.as_str()) && source.get(*key) != plan.get(*key))
        .map(|key| format!("model.{key}: {}, here {}", shown(&source, key), shown(&plan, key)))
        .collect()
}

fn keys(config: &ModelConfig) -> BTreeMap<String, Value> {
    let value = serde_json::to_value(config).expect("numbers and names can always be JSON");
    match value {
        Value::Object(keys) => keys.into_iter().collect(),
        _ => unreachable!("a model's config has keys"),
    }
}

fn fill_masters(unit: &UnitState, source: &Source) -> Result<(), Error> {
    for Segment { param, param_range, unit_range } in unit.layout.segments(unit.owned.clone()) {
        let stored = source.tensor(&unit.layout.params()[param].name)?;
        let kind = match stored.spec.dtype {
            Dtype::U8 => unreachable!("a source refuses bytes as weights"),
            Dtype::Bf16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
        };
        let size = kind.elt_size_in_bytes();
        let bytes = &stored.bytes[param_range.start * size..param_range.end * size];
        let values = Tensor::from_data_size(bytes, &[param_range.len() as i64], kind);
        let start = (unit_range.start - unit.owned.start) as i64;
        unit.masters.narrow(0, start, param_range.len() as i64).copy_(&values);
    }
    Ok(())
}
