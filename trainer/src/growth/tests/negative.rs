//! What must not pass for exact: each condition of the operators, broken once.

use super::*;

/// Far above rounding, far below the smallest of these jumps.
const A_JUMP: f64 = 1e-4;

const WIDER: Target = Target { hidden: 20, heads: 6, kv_heads: 3, intermediate: 13, layers: 2 };
const TWICE: Target = Target { hidden: 24, heads: 8, kv_heads: 4, intermediate: 20, layers: 2 };
const EXACT: GrowthPlan = GrowthPlan::DEFAULT;

#[test]
fn a_wrong_epsilon_jumps() {
    let small = llama(2, true);
    let right = larger(&small, WIDER, ResidualGrowth::Copy);
    let big = grown(&small, &right, &EXACT);
    let ModelConfig::Llama(mut wrong) = right else { unreachable!("it is a Llama") };
    wrong.rms_norm_eps = EPS;
    assert!(jump(&small, &ModelConfig::Llama(wrong), &big, Kind::Double) > A_JUMP);
}

#[test]
fn a_residue_of_zero_under_layer_norm_jumps() {
    let small = gpt2();
    let target = Target { heads: 5, kv_heads: 5, ..WIDER };
    let config = larger(&small, target, ResidualGrowth::Copy);
    let mut big = grown(&small, &config, &EXACT);
    let embedding = &big["transformer.wte.weight"];
    let zeroed = embedding.copy();
    let _ = zeroed.narrow(1, 12, 8).zero_();
    big.insert("transformer.wte.weight".to_owned(), zeroed);
    assert!(jump(&small, &config, &big, Kind::Double) > A_JUMP);
}

#[test]
fn a_tied_head_without_division_jumps() {
    let small = llama(2, true);
    let config = larger(&small, TWICE, ResidualGrowth::Copy);
    let mut big = grown(&small, &config, &EXACT);
    let twice = &big["model.norm.weight"] * 2.0;
    big.insert("model.norm.weight".to_owned(), twice);
    assert!(jump(&small, &config, &big, Kind::Double) > A_JUMP);
}

#[test]
fn operators_that_do_not_claim_it_do_jump() {
    let small = llama(2, true);
    let wide = larger(&small, TWICE, ResidualGrowth::Copy);
    let deep = larger(&small, Target { layers: 4, ..same() }, ResidualGrowth::Copy);
    let aki = plan(WidthGrowth::Aki, ResidualGrowth::Copy, DepthGrowth::ZeroInsert);
    let stack = plan(WidthGrowth::Equal, ResidualGrowth::Copy, DepthGrowth::Stack);
    for (config, plan) in [(wide, aki), (deep, stack)] {
        assert!(!plan.keeps_function(true, true));
        let big = grown(&small, &config, &plan);
        assert!(jump(&small, &config, &big, Kind::Double) > A_JUMP, "{plan:?}");
    }
}

fn same() -> Target {
    Target { hidden: 12, heads: 4, kv_heads: 2, intermediate: 10, layers: 2 }
}
