//! A grown model into the buffers of a run: each rank computes the parameters that it owns a part
//! of, from the same files by the same map, so that no bit depends on ranks or stages.

use super::anatomy::Anatomy;
use super::parts::{Parts, Plane, param_value};
use super::states::encoded;
use crate::rules::Rules;
use crate::state::RunState;

/// Fills masters, working copies, optimizer state and each parameter's count of updates. `step`,
/// tokens and FLOPs are the caller's to set before.
///
/// Panics if the model's parameters are not the state's.
pub fn fill(state: &mut RunState, rules: &Rules, model: &dyn Parts) {
    let anatomy = Anatomy::new(model.config());
    let mut params = anatomy.params().iter();
    for unit in &state.units {
        for (index, spec) in unit.spec.params.iter().enumerate() {
            let assembly = params.next().expect("the state has the model's parameters");
            assert_eq!(assembly.spec.name, spec.name, "both list parameters in one order");
            let owned = || unit.segments.iter().filter(|segment| segment.param == index);
            if owned().next().is_none() {
                continue;
            }
            let kind = unit.masters.kind();
            let weight = param_value(model, assembly, Plane::Weight).to_kind(kind).reshape([-1]);
            let states = encoded(model, assembly, rules, kind);
            for segment in owned() {
                let len = segment.range.len() as i64;
                let values = weight.narrow(0, segment.param_range.start as i64, len);
                unit.masters.narrow(0, segment.range.start as i64, len).copy_(&values);
                for (&(buffer, first), (spec, flat)) in segment.places.iter().zip(&states) {
                    let count = |n: usize| spec.storage.num_elements(n) as i64;
                    let len = count(segment.range.len());
                    let values = flat.narrow(0, count(segment.param_range.start), len);
                    let buffer = &unit.states[buffer].flat;
                    buffer.narrow(0, count(first), len).copy_(&values);
                }
            }
        }
    }
    // What a rule keeps of a whole parameter does not grow: it starts anew, and so does its count.
    let counts = anatomy.params().iter().map(|assembly| {
        let starts_anew = rules.taken_whole(&assembly.spec).is_some();
        let steps = if starts_anew { 0 } else { model.steps(assembly.parts[0]) };
        (&assembly.spec.name, steps)
    });
    state.set_updates(counts);
    state.round_masters();
}
