//! What optimizers that need parameters whole must know of each: how it is stored, which heads and
//! fused matrices it consists of.

use std::collections::BTreeMap;

use grove_optim::{Orientation as Stored, ParamFacts, Part};

use super::config::{DecoderSpec, ModelConfig};
use super::units::{Orientation, ParamSpec, UnitMap};

/// The facts of every parameter of a model, by name.
///
/// A head of q and k shares a second moment in Adam-mini, an output neuron or a token of what else
/// is a matrix, all of a norm's weight (Zhang et al. 2024, arXiv:2406.16793, section 2.3).
pub fn param_facts(config: &ModelConfig) -> BTreeMap<String, ParamFacts> {
    let (map, spec) = (UnitMap::new(config), config.spec());
    let last = map.units.len() - 1;
    let mut all = BTreeMap::new();
    for (index, unit) in map.units.iter().enumerate() {
        for (param, described) in unit.params.iter().enumerate() {
            let facts = match index {
                0 => table(described),
                index if index == last => table(described),
                _ => of_block(&map, &spec, (param, described)),
            };
            all.insert(described.name.clone(), facts);
        }
    }
    all
}

/// Embedding, head and norms.
fn table(param: &ParamSpec) -> ParamFacts {
    let facts = ParamFacts::new(&param.shape, param.role, Stored::OutIn);
    // A norm's bias gets full Adam in the authors' code.
    if param.name.ends_with(".bias") { with_blocks(facts, 1) } else { facts }
}

fn of_block(map: &UnitMap, spec: &DecoderSpec, (index, param): (usize, &ParamSpec)) -> ParamFacts {
    let block = &map.block;
    let projections = [&block.qkv, &block.output, &block.up, &block.down];
    let Some(projection) = projections.into_iter().find(|one| one.weights.contains(&index)) else {
        return table(param);
    };
    let stored = match projection.orientation {
        Orientation::OutIn => Stored::OutIn,
        Orientation::InOut => Stored::InOut,
    };
    let facts = ParamFacts::new(&param.shape, param.role, stored);
    if projection != &block.qkv {
        return facts;
    }
    let head = spec.head_dim as i64;
    let (q, kv) = (spec.num_heads as i64 * head, spec.num_kv_heads as i64 * head);
    let [q, k, v] = [(q, head), (kv, head), (kv, 1)];
    let part = |(num_outputs, outputs_per_block)| Part { num_outputs, outputs_per_block };
    match (projection.weights.len(), index - projection.weights.start) {
        (1, _) => facts.with_parts([q, k, v].map(part).to_vec()),
        (_, place) => facts.with_parts(vec![part([q, k, v][place])]),
    }
}

fn with_blocks(facts: ParamFacts, outputs_per_block: i64) -> ParamFacts {
    let num_outputs = facts.num_outputs();
    facts.with_parts(vec![Part { num_outputs, outputs_per_block }])
}

#[cfg(test)]
mod tests;
