//! The optimizer's state of a grown parameter in the forms that a rule stores.

use std::collections::BTreeSet;

use grove_optim::{QUANTIZED_BLOCK_ELEMENTS, Role, Start, StateKind, StateSpec, Storage};
use tch::{Kind, Tensor};

use super::anatomy::Assembly;
use super::error::{Error, listed};
use super::parts::{Parts, Plane, param_value};
use super::stored::StoredModel;
use crate::config::{GrowthPlan, MomentGrowth};
use crate::rules::Rules;
use crate::state::storage_dtype;

/// Refuses a source whose states are not those of the rule, unless they are dropped anyway or
/// there are none.
///
/// # Errors
/// [`Error::States`].
pub fn check(source: &StoredModel, rules: &Rules, plan: &GrowthPlan) -> Result<(), Error> {
    let found = source.states();
    if plan.moments == MomentGrowth::Fresh || found.is_empty() {
        return Ok(());
    }
    // As many elements as any rule quantizes.
    let is_value = |spec: &&StateSpec| spec.storage != Storage::BlockScale;
    let roles = [Role::Matrix, Role::Embedding, Role::Norm, Role::Bias, Role::Head, Role::Scalar];
    let specs = roles.iter().flat_map(|&role| rules.of(role).state_specs(usize::MAX));
    let expected: BTreeSet<StateKind> = specs.filter(is_value).map(|spec| spec.kind).collect();
    if expected.iter().all(|kind| found.contains(kind)) {
        return Ok(());
    }
    Err(Error::States {
        folder: source.folder().to_owned(),
        expected: listed(expected.iter().map(|kind| kind.name())),
        found: listed(found.iter().map(|kind| kind.name())),
    })
}

/// What the rule keeps for a parameter, in its order, each flat in the dtype of its storage.
///
/// A model that has no such state gets what a state starts from.
pub fn encoded(
    model: &dyn Parts,
    assembly: &Assembly,
    rules: &Rules,
    accumulation: Kind,
) -> Vec<(StateSpec, Tensor)> {
    let known = model.states();
    let mut scales = None;
    let mut states = Vec::new();
    for &spec in rules.state_specs(&assembly.spec) {
        let dtype = storage_dtype(spec.storage, accumulation);
        let flat = match spec.storage {
            Storage::BlockScale => Option::take(&mut scales).expect("scales follow their codes"),
            _ => {
                let value = if known.contains(&spec.kind) {
                    param_value(model, assembly, Plane::State(spec.kind))
                } else {
                    let weight = param_value(model, assembly, Plane::Weight);
                    if spec.kind.start() == Start::Master { weight } else { weight.zeros_like() }
                };
                let value = value.reshape([-1]);
                if spec.storage == Storage::Codes {
                    let (codes, scale) = quantized(spec.kind, &value);
                    scales = Some(scale);
                    codes
                } else {
                    value
                }
            }
        };
        states.push((spec, flat.to_kind(dtype)));
    }
    states
}

fn quantized(kind: StateKind, value: &Tensor) -> (Tensor, Tensor) {
    let values: Vec<f32> = Vec::try_from(value.to_kind(Kind::Float)).expect("a vector of f32");
    let mut codes = vec![0; values.len()];
    let mut scales = vec![0.0; values.len().div_ceil(QUANTIZED_BLOCK_ELEMENTS)];
    let book = kind.code_book();
    book.quantize(&values, &mut codes, &mut scales).expect("buffers of the right lengths");
    (Tensor::from_slice(&codes), Tensor::from_slice(&scales))
}
