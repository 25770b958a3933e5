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

/// The model with the form that a scheme needs.
fn formed(scheme: InitScheme, mut config: ModelConfig) -> ModelConfig {
    let form = scheme.residual_form(config.spec().num_layers).expect("a scheme with a form");
    match &mut config {
        ModelConfig::Llama(llama) => llama.residual = form,
        ModelConfig::Gpt2(gpt2) => gpt2.residual = form,
    }
    config
}

#[test]
fn deviations_of_schemes_with_a_form_are_the_hand_derived_ones() {
    // 4 blocks, 8 branches, 96 channels, 160 neurons, q 32 wide and v 16 in the Llama.
    let xavier = |fan_in: f64, fan_out: f64| (2.0 / (fan_in + fan_out)).sqrt();
    let (up, gate) = ("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight");
    let (query, value) =
        ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight");
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let down = "model.layers.1.mlp.down_proj.weight";
    use InitScheme::{Deepnorm, Fixup, Rezero, Skipinit, Subln, TFixup};
    for (scheme, name, expected) in [
        (Fixup, up, 8f64.powf(-0.5) / 96f64.sqrt()),
        (Fixup, gate, 1.0 / 96f64.sqrt()),
        (Skipinit, up, 1.0 / 96f64.sqrt()),
        (Rezero, down, xavier(96.0, 160.0)),
        (Rezero, embedding, 1.0),
        (TFixup, up, 0.67 * 4f64.powf(-0.25) * xavier(96.0, 160.0)),
        (TFixup, gate, xavier(96.0, 160.0)),
        (TFixup, embedding, 36f64.powf(-0.25) / 96f64.sqrt()),
        (Deepnorm, down, 32f64.powf(-0.25) * xavier(96.0, 160.0)),
        (Deepnorm, query, xavier(96.0, 32.0)),
        (Deepnorm, value, 32f64.powf(-0.25) * xavier(96.0, 16.0)),
        (Subln, down, 8f64.ln().sqrt() * xavier(96.0, 160.0)),
        (Subln, query, xavier(96.0, 32.0)),
    ] {
        let found = deviation(scheme, &formed(scheme, wide(true)), name);
        assert!((found / expected - 1.0).abs() < CLOSE, "{scheme:?} {name}: {found}, {expected}");
    }
    for name in [down, head, "model.layers.2.self_attn.o_proj.weight"] {
        assert_eq!(deviation(Fixup, &formed(Fixup, wide(true)), name), 0.0, "{name}");
    }
    // Fused: q and k as they are, v smaller; a tied head must not be zero.
    let gpt2 = formed(Deepnorm, wide(false));
    let (shape, values) = drawn(Deepnorm, &gpt2, "transformer.h.1.attn.c_attn.weight");
    let fused = Tensor::from_slice(&values).view(shape.as_slice());
    for (third, factor) in [(0, 1.0), (1, 1.0), (2, 32f64.powf(-0.25))] {
        let part = fused.narrow(1, third * 96, 96);
        let found = part.square().mean(Kind::Double).double_value(&[]).sqrt();
        let expected = factor * xavier(96.0, 96.0);
        assert!((found / expected - 1.0).abs() < CLOSE, "third {third}: {found}, {expected}");
    }
    let found = deviation(Fixup, &formed(Fixup, wide(false)), "transformer.wte.weight");
    assert!((found * 96f64.sqrt() - 1.0).abs() < CLOSE, "{found}");
}

#[test]
fn learned_factors_start_silent_where_the_scheme_says_so() {
    use InitScheme::{Fixup, Rezero, Skipinit};
    for (scheme, name, expected) in [
        (Skipinit, "model.layers.3.residual.mlp_gain", 0.0),
        (Rezero, "model.layers.3.residual.gain", 0.0),
        (Fixup, "model.layers.3.residual.attention_gain", 1.0),
        (Fixup, "model.layers.3.residual.down_bias", 0.0),
        (Fixup, "model.residual.head_bias", 0.0),
    ] {
        let (shape, values) = drawn(scheme, &formed(scheme, wide(true)), name);
        assert_eq!((shape, values), (vec![1], vec![expected]), "{scheme:?} {name}");
    }
}

/// Branches of zeros: what goes in comes out, so that all depths start alike.
#[test]
fn silent_branches_hand_the_stream_through() {
    use InitScheme::{Fixup, Rezero, Skipinit};
    for scheme in [Fixup, Rezero, Skipinit] {
        let deep = formed(scheme, llama(4, true));
        let shallow = match deep.clone() {
            ModelConfig::Llama(llama) => {
                ModelConfig::Llama(LlamaConfig { num_hidden_layers: 1, ..llama })
            }
            other @ ModelConfig::Gpt2(_) => other,
        };
        let logits = |config: &ModelConfig| {
            let mut units = UnitMap::new(config).units;
            assign(scheme, config, units.iter_mut());
            let params = units.iter().flat_map(|unit| &unit.params);
            let weights: NamedWeights = params
                .map(|param| {
                    let mut values = vec![0.0; param.shape.iter().product::<i64>() as usize];
                    init::fill(3, param, &mut values);
                    let values = Tensor::from_slice(&values).view(param.shape.as_slice());
                    (param.name.clone(), values)
                })
                .collect();
            PlainModel::new(config).logits(&weights, &tokens())
        };
        assert_ne!(deep.spec().num_layers, shallow.spec().num_layers);
        assert_eq!(max_difference(&logits(&deep), &logits(&shallow)), 0.0, "{scheme:?}");
    }
}
