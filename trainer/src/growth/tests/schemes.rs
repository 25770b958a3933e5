//! Initial weights: moments against hand-derived values, and matrices that are not random.

use super::*;
use crate::config::InitScheme;
use crate::growth::schemes::assign;
use crate::model::init;
use crate::model::units::UnitMap;

/// Of a deviation estimated from some thousand values.
const CLOSE: f64 = 0.05;

fn wide(gated: bool) -> ModelConfig {
    if gated {
        let target = Target { hidden: 96, heads: 8, kv_heads: 4, intermediate: 160, layers: 4 };
        larger(&llama(4, false), target, ResidualGrowth::Copy)
    } else {
        let target = Target { hidden: 96, heads: 24, kv_heads: 24, intermediate: 160, layers: 4 };
        larger(&gpt2(), target, ResidualGrowth::Copy)
    }
}

fn drawn(scheme: InitScheme, config: &ModelConfig, name: &str) -> (Vec<i64>, Vec<f64>) {
    let mut units = UnitMap::new(config).units;
    assign(scheme, config, units.iter_mut());
    let mut params = units.iter().flat_map(|unit| &unit.params);
    let param = params.find(|param| param.name == name).expect("a parameter");
    let mut values = vec![0.0; param.shape.iter().product::<i64>() as usize];
    init::fill(3, param, &mut values);
    (param.shape.clone(), values)
}

fn deviation(scheme: InitScheme, config: &ModelConfig, name: &str) -> f64 {
    let (_, values) = drawn(scheme, config, name);
    (values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64).sqrt()
}

#[test]
fn deviations_are_the_hand_derived_ones() {
    let (llama, gpt2) = (wide(true), wide(false));
    let up = "model.layers.1.mlp.up_proj.weight";
    let down = "model.layers.1.mlp.down_proj.weight";
    let query = "model.layers.1.self_attn.q_proj.weight";
    let fused = "transformer.h.1.attn.c_attn.weight";
    let last = "transformer.h.3.mlp.c_proj.weight";
    let (xavier, small) = (InitScheme::Xavier, InitScheme::SmallInit);
    for (scheme, config, name, expected) in [
        (InitScheme::Gpt2, &llama, up, 0.1),
        (InitScheme::Gpt2, &llama, down, 0.1 / 8f64.sqrt()),
        (InitScheme::Llama, &llama, up, 0.1 / 4f64.sqrt()),
        (InitScheme::Llama, &llama, query, 0.1),
        (InitScheme::Llama, &gpt2, last, 0.1 / 8f64.sqrt()),
        (InitScheme::Llama, &llama, "model.embed_tokens.weight", 1.0),
        // d^-1/2, of which cutting at 3 deviations leaves 0.9866.
        (InitScheme::Llama, &llama, "lm_head.weight", 0.9866 / 96f64.sqrt()),
        (xavier, &llama, up, (2.0 / (96.0 + 160.0f64)).sqrt()),
        // Each of the three fused maps has its own fan.
        (xavier, &gpt2, fused, (2.0 / (96.0 + 96.0f64)).sqrt()),
        (InitScheme::Kaiming, &llama, up, 1.0 / 96f64.sqrt()),
        (InitScheme::Kaiming, &llama, down, (2.0 / 160.0f64).sqrt()),
        (small, &llama, up, (2.0 / (5.0 * 96.0f64)).sqrt()),
        (small, &llama, down, 2.0 / (4.0 * 96f64.sqrt())),
    ] {
        let found = deviation(scheme, config, name);
        assert!((found / expected - 1.0).abs() < CLOSE, "{scheme:?} {name}: {found}, {expected}");
    }
}

#[test]
fn truncated_values_stay_within_their_bounds() {
    let (_, values) = drawn(InitScheme::Llama, &wide(true), "lm_head.weight");
    let bound = 3.0 / 96f64.sqrt();
    assert!(values.iter().all(|value| value.abs() <= bound));
    assert!(values.iter().any(|value| value.abs() > 0.7 * bound));
}

#[test]
fn zero_has_identities_and_hadamard_matrices_and_nothing_random() {
    let scheme = InitScheme::Zero;
    let llama = wide(true);
    let matrix = |config: &ModelConfig, name: &str| {
        let (shape, values) = drawn(scheme, config, name);
        Tensor::from_slice(&values).view(shape.as_slice())
    };
    // 16 key rows of 96 columns: a partial identity.
    let key = matrix(&llama, "model.layers.0.self_attn.k_proj.weight");
    assert!(key.equal(&Tensor::eye_m(16, 96, (Kind::Double, tch::Device::Cpu))));
    assert_eq!(max_difference(&matrix(&llama, "lm_head.weight"), &Tensor::from(0.0)), 0.0);
    // 160 rows of 96 columns: the corner of a Hadamard matrix of 256, entries +-1/16, H^2 = 256.
    let up = matrix(&llama, "model.layers.0.mlp.up_proj.weight");
    assert!((up.abs() - 1.0 / 16.0).abs().max().double_value(&[]) < 1e-15);
    // Sylvester's: entry (i, j) is (-1)^popcount(i & j).
    for (i, j) in [(0i64, 5i64), (3, 1), (3, 2), (3, 3), (127, 64)] {
        let expected = if (i & j).count_ones() % 2 == 0 { 1.0 } else { -1.0 } / 16.0;
        assert_eq!(up.double_value(&[i, j]), expected, "{i} {j}");
    }
    // Stored as [in, out], with q, k and v side by side: three identities.
    let gpt2 = wide(false);
    let fused = matrix(&gpt2, "transformer.h.0.attn.c_attn.weight");
    let identity = Tensor::eye(96, (Kind::Double, tch::Device::Cpu));
    assert!(fused.equal(&Tensor::cat(&[&identity, &identity, &identity], 1)));
    let output = matrix(&gpt2, "transformer.h.0.attn.c_proj.weight");
    assert_eq!(output.abs().max().double_value(&[]), 0.0);
}
