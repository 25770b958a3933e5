//! Schedule-free's two models: gradients are taken at `y`, which masters hold, and the model to
//! evaluate, to keep and to sample from is `x`. Working copies hold one or the other.
//!
//! Masters of units with such parameters never lie inside working copies, in any precision, so
//! that going to `x` and back rounds nothing.

use grove_optim::{Rule, StateKind};
use tch::Tensor;

use crate::checkpoint::{Dtype, TensorFile};
use crate::error::Error;
use crate::pass::Traffic;
use crate::rules::Rules;
use crate::state::UnitState;

/// Brings working copies to the model that is to be evaluated and kept. Returns whether that is
/// another one than training's: then [`to_training_point`] must follow before the next step.
///
/// # Errors
/// If a collective fails or libtorch refuses an operation.
///
/// # Collectives
/// For units with parameters of schedule-free rules: what an update does to bring working copies.
pub fn to_eval_point(
    units: &[UnitState],
    rules: &Rules,
    traffic: &mut Traffic<'_>,
) -> Result<bool, Error> {
    let mut any = false;
    traffic.residents.settle()?;
    for (index, unit) in units.iter().enumerate() {
        if !unit.has_eval_point() {
            continue;
        }
        any = true;
        let working = unit.owned_working();
        for segment in &unit.segments {
            let Rule::ScheduleFree(rule) = rules.of(unit.spec.params[segment.param].role) else {
                continue;
            };
            let base = |&&(buffer, _): &&(usize, usize)| {
                unit.states[buffer].spec.kind == StateKind::BaseIterate
            };
            let place = segment.places.iter().find(base);
            let &(buffer, first) = place.expect("schedule-free keeps the base iterate");
            let (start, len) = (segment.range.start as i64, segment.range.len() as i64);
            let y = unit.masters.narrow(0, start, len);
            let z = unit.states[buffer].flat.narrow(0, first as i64, len);
            working.narrow(0, start, len).copy_(&rule.eval_point_tensor(&y, &z)?);
        }
        traffic.residents.refresh(units, &traffic.sharding, index)?;
    }
    traffic.residents.settle()?;
    Ok(any)
}

/// Takes masters that were loaded from a schedule-free run's checkpoint from `y` to the average `x`,
/// which is the model to go on from with another rule. Parameters without a base iterate in
/// `optimizer` stay.
///
/// # Errors
/// If the optimizer file cannot be read.
pub fn masters_to_average(
    units: &[UnitState],
    optimizer: &TensorFile,
    beta1: f64,
) -> Result<(), Error> {
    for unit in units {
        for segment in &unit.segments {
            let name = &unit.spec.params[segment.param].name;
            let name = format!("{}/{name}", StateKind::BaseIterate.name());
            let Ok(stored) = optimizer.get(&name) else { continue };
            let kind = unit.masters.kind();
            let size = if stored.spec.dtype == Dtype::F64 { 8 } else { 4 };
            let range = segment.param_range.clone();
            let bytes = &stored.bytes[range.start * size..range.end * size];
            let z = Tensor::from_data_size(bytes, &[range.len() as i64], kind);
            let (start, len) = (segment.range.start as i64, segment.range.len() as i64);
            let mut y = unit.masters.narrow(0, start, len);
            let toward = (z.to_device(y.device()) - &y) * (1.0 - 1.0 / beta1);
            let _ = y.g_add_(&toward);
        }
    }
    Ok(())
}

/// Brings working copies back to where gradients are taken: the masters, rounded.
///
/// # Errors
/// If a collective fails.
///
/// # Collectives
/// As [`to_eval_point`].
pub fn to_training_point(units: &[UnitState], traffic: &mut Traffic<'_>) -> Result<(), Error> {
    traffic.residents.settle()?;
    for (index, unit) in units.iter().enumerate().filter(|(_, unit)| unit.has_eval_point()) {
        unit.owned_working().copy_(&unit.masters);
        traffic.residents.refresh(units, &traffic.sharding, index)?;
    }
    Ok(())
}
