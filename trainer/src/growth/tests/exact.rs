//! Exact operators: the logits stay, over families, heads, widths, splits and depths.

use super::*;
use crate::model::config::RopeScaling;

/// fp64 logits of order 1 to 10 after some hundred operations.
const SAME_IN_FP64: f64 = 1e-12;
/// The same in fp32.
const SAME_IN_FP32: f64 = 1e-5;

/// Targets of a model with 4 heads: divisible, indivisible with one copy and with two.
fn targets(kv_heads: usize, depth: usize) -> Vec<Target> {
    [(24, 2, 20), (20, 2, 13), (28, 3, 25)]
        .into_iter()
        .map(|(hidden, times, intermediate)| Target {
            hidden,
            heads: 4 * times,
            kv_heads: kv_heads * if times == 3 { 1 } else { 2 },
            intermediate,
            layers: depth,
        })
        .collect()
}

fn check(small: &ModelConfig, target: &ModelConfig, plan: &GrowthPlan) {
    let big = grown(small, target, plan);
    let fp64 = jump(small, target, &big, Kind::Double);
    assert!(fp64 < SAME_IN_FP64, "{fp64:e} in fp64: {plan:?} {target:?}");
    let fp32 = jump(small, target, &big, Kind::Float);
    assert!(fp32 < SAME_IN_FP32, "{fp32:e} in fp32: {plan:?} {target:?}");
}

fn each_exact_plan(check: impl Fn(GrowthPlan, usize)) {
    for width in [WidthGrowth::Equal, WidthGrowth::Uneven] {
        for residual in [ResidualGrowth::Copy, ResidualGrowth::ZeroPad] {
            for (depth, layers) in [
                (DepthGrowth::ZeroInsert, 2),
                (DepthGrowth::ZeroInsert, 5),
                (DepthGrowth::IdentityInsert, 3),
                (DepthGrowth::Lemon, 3),
            ] {
                check(plan(width, residual, depth), layers);
            }
        }
    }
}

#[test]
fn a_llama_keeps_its_logits() {
    for kv_heads in [4, 2, 1] {
        for tied in [true, false] {
            let small = llama(kv_heads, tied);
            each_exact_plan(|plan, layers| {
                for target in targets(kv_heads, layers) {
                    check(&small, &larger(&small, target, plan.residual), &plan);
                }
            });
        }
    }
}

#[test]
fn a_gpt2_keeps_its_logits() {
    let small = gpt2();
    each_exact_plan(|plan, layers| {
        for (hidden, heads, intermediate) in [(24, 6, 20), (20, 5, 13), (28, 7, 25)] {
            let target = Target { hidden, heads, kv_heads: heads, intermediate, layers };
            check(&small, &larger(&small, target, plan.residual), &plan);
        }
    });
}

#[test]
fn key_heads_and_their_queries_grow_apart_from_the_rest() {
    let (width, residual) = (WidthGrowth::Uneven, ResidualGrowth::Copy);
    let plan = plan(width, residual, DepthGrowth::ZeroInsert);
    let small = llama(2, true);
    // MQA and GQA to MHA, more queries a key, both, and neither a multiple.
    for (heads, kv_heads) in [(4, 4), (8, 2), (12, 6), (6, 3), (6, 2), (8, 8)] {
        let target = Target { hidden: 12, heads, kv_heads, intermediate: 10, layers: 2 };
        check(&small, &larger(&small, target, residual), &plan);
    }
    let small = llama(1, false);
    let target = Target { hidden: 12, heads: 4, kv_heads: 4, intermediate: 10, layers: 2 };
    check(&small, &larger(&small, target, residual), &plan);
}

#[test]
fn a_head_of_its_own_and_more_ids_and_positions_keep_the_old_logits() {
    let plan = plan(WidthGrowth::Uneven, ResidualGrowth::Copy, DepthGrowth::ZeroInsert);
    let small = llama(2, true);
    let target = Target { hidden: 20, heads: 6, kv_heads: 3, intermediate: 13, layers: 3 };
    let ModelConfig::Llama(mut big) = larger(&small, target, ResidualGrowth::Copy) else {
        unreachable!("it is a Llama")
    };
    (big.tie_word_embeddings, big.vocab_size) = (false, 23);
    check(&small, &ModelConfig::Llama(big), &plan);

    let small = gpt2();
    let target = Target { hidden: 24, heads: 6, kv_heads: 6, intermediate: 20, layers: 3 };
    let ModelConfig::Gpt2(mut big) = larger(&small, target, ResidualGrowth::Copy) else {
        unreachable!("it is a GPT-2")
    };
    (big.n_positions, big.vocab_size) = (40, 23);
    check(&small, &ModelConfig::Gpt2(big), &plan);
}

#[test]
fn a_longer_context_changes_the_function_and_no_weight() {
    let small = llama(2, true);
    let ModelConfig::Llama(mut long) = small.clone() else { unreachable!("it is a Llama") };
    long.max_position_embeddings = 32;
    long.rope_scaling = Some(RopeScaling::Linear { factor: 2.0 });
    let long = ModelConfig::Llama(long);
    let big = grown(&small, &long, &GrowthPlan::DEFAULT);
    assert!(weights(&small, 1).iter().all(|(name, value)| value.equal(&big[name])));
    assert!(jump(&small, &long, &big, Kind::Double) > 1e-4);
    let steps = Steps::between(&small.spec(), &long.spec());
    assert!(steps.turns_otherwise && !steps.adds_rows && !steps.widens);
}

#[test]
fn one_configuration_grows_into_itself_bit_for_bit() {
    for small in [llama(2, false), gpt2()] {
        let before = weights(&small, 1);
        let after = grown(&small, &small, &GrowthPlan::DEFAULT);
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        assert!(before.iter().all(|(name, value)| value.equal(&after[name])));
    }
}

#[test]
fn blocks_come_from_where_the_operators_say() {
    let small = llama(4, true);
    let target = Target { hidden: 12, heads: 4, kv_heads: 4, intermediate: 10, layers: 5 };
    let big = larger(&small, target, ResidualGrowth::Copy);
    let old = weights(&small, 1);
    let name = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight");
    for (depth, sources) in [
        (DepthGrowth::Stack, [0, 1, 0, 1, 0]),
        (DepthGrowth::Interpolate, [0, 0, 0, 1, 1]),
        (DepthGrowth::ZeroInsert, [0, 0, 0, 1, 1]),
    ] {
        let plan = plan(WidthGrowth::Equal, ResidualGrowth::Copy, depth);
        let new = grown(&small, &big, &plan);
        for (layer, source) in sources.into_iter().enumerate() {
            assert!(new[&name(layer)].equal(&old[&name(source)]), "{depth:?} {layer}");
        }
    }
}
