//! Schedule-free's two models: gradients are taken at `y`, which masters hold, and the model to
//! evaluate, to keep and to sample from is `x`. Working copies hold one or the other.
//!
//! Masters of units with such parameters never lie inside working copies, in any precision, so
//! that going to `x` and back rounds nothing.

use grove_optim::{Rule, Rules, StateKind};

use crate::error::Error;
use crate::pass::Traffic;
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
