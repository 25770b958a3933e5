//! LiGO: one-hot maps are the plain operators, and learning lowers the loss.

use super::*;
use crate::growth::ligo::{Learned, Learning, NOISE, learn};

/// The maps are fp32.
const SAME_IN_FP32: f64 = 1e-5;

fn learned(small: &ModelConfig, target: &ModelConfig, learning: Learning) -> Learned {
    let source = NamedModel::new(small, weights(small, 1));
    let mut batches = (0..learning.steps).map(|_| Ok(tokens()));
    learn(&source, target, &learning, &mut batches).expect("batches that are there")
}

fn one_hot(depth: DepthGrowth) -> Learning {
    Learning { steps: 0, lr: 0.0, depth, noise: 0.0, seed: 5 }
}

#[test]
fn one_hot_maps_are_stack_interpolation_and_net2net() {
    for (small, heads) in [(llama(2, true), 8), (llama(2, false), 8), (gpt2(), 6)] {
        let kv_heads = if heads == 8 { 4 } else { 6 };
        let target = Target { hidden: 24, heads, kv_heads, intermediate: 15, layers: 5 };
        let config = larger(&small, target, ResidualGrowth::Copy);
        for depth in [DepthGrowth::Stack, DepthGrowth::Interpolate] {
            let by_map =
                named_weights(&learned(&small, &config, one_hot(depth)).model, Kind::Double);
            let plan = plan(WidthGrowth::Equal, ResidualGrowth::Copy, depth);
            for (name, value) in grown(&small, &config, &plan) {
                let apart = max_difference(&value, &by_map[&name]);
                assert!(apart < SAME_IN_FP32, "{depth:?} {name}: {apart:e}");
            }
        }
    }
}

#[test]
fn learning_lowers_the_loss_and_leaves_the_old_rows_alone() {
    let small = llama(2, true);
    let target = Target { hidden: 20, heads: 6, kv_heads: 3, intermediate: 13, layers: 4 };
    let config = larger(&small, target, ResidualGrowth::Copy);
    let learning =
        Learning { steps: 40, lr: 1e-2, depth: DepthGrowth::Stack, noise: NOISE, seed: 5 };
    let learned = learned(&small, &config, learning);
    let (first, last) = (learned.losses[0], learned.losses[39]);
    assert!(last < 0.9 * first, "{first} -> {last}");
    assert_eq!(learned.num_tokens, 40 * 2 * 11);
    let old = &weights(&small, 1)["model.embed_tokens.weight"];
    let new = &named_weights(&learned.model, Kind::Double)["model.embed_tokens.weight"];
    assert!(max_difference(old, &new.narrow(1, 0, 12)) < SAME_IN_FP32);
}
