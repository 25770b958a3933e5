//! Tests of the operators against the plain model in fp64, and of what training makes of them.

mod exact;
mod ligo;
mod negative;
mod refusals;
mod schemes;
mod trajectories;

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::*;
use crate::config::{DepthGrowth, GrowthPlan, ResidualGrowth, WidthGrowth};
use crate::model::config::{Gpt2Config, LlamaConfig, ModelConfig, Parametrization, ResidualForm};
use crate::model::plain::{NamedWeights, PlainModel};

/// An epsilon large enough that a wrong one shows.
const EPS: f64 = 1e-2;

fn llama(kv_heads: usize, tied: bool) -> ModelConfig {
    ModelConfig::Llama(LlamaConfig {
        vocab_size: 17,
        hidden_size: 12,
        intermediate_size: 10,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: kv_heads,
        head_dim: 4,
        max_position_embeddings: 16,
        rms_norm_eps: EPS,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tie_word_embeddings: tied,
        initializer_range: 0.1,
        residual: ResidualForm::default(),
        parametrization: Parametrization::Standard,
        base_hidden_size: None,
        base_head_dim: None,
        base_num_hidden_layers: None,
    })
}

fn gpt2() -> ModelConfig {
    ModelConfig::Gpt2(Gpt2Config {
        vocab_size: 17,
        n_positions: 16,
        n_embd: 12,
        n_layer: 2,
        n_head: 3,
        n_inner: 10,
        layer_norm_epsilon: EPS,
        initializer_range: 0.1,
        residual: ResidualForm::default(),
    })
}

/// A size that a model grows to.
#[derive(Clone, Copy, Debug)]
struct Target {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    intermediate: usize,
    layers: usize,
}

/// The larger model, with the epsilon that its width needs.
fn larger(small: &ModelConfig, target: Target, residual: ResidualGrowth) -> ModelConfig {
    let old = small.spec();
    let (_, scale) = width::copies_and_scale(old.hidden_size, target.hidden, residual);
    let mut config = small.clone();
    match &mut config {
        ModelConfig::Llama(llama) => {
            llama.hidden_size = target.hidden;
            llama.num_attention_heads = target.heads;
            llama.num_key_value_heads = target.kv_heads;
            llama.intermediate_size = target.intermediate;
            llama.num_hidden_layers = target.layers;
            llama.rms_norm_eps = scale * EPS;
        }
        ModelConfig::Gpt2(gpt2) => {
            gpt2.n_embd = target.hidden;
            gpt2.n_head = target.heads;
            gpt2.n_inner = target.intermediate;
            gpt2.n_layer = target.layers;
            gpt2.layer_norm_epsilon = scale * EPS;
        }
    }
    config
}

/// Weights with nothing special about them: norms are not 1, biases not 0.
fn weights(config: &ModelConfig, seed: u64) -> NamedWeights {
    // Tensors this small gain nothing from threads, which would compete with other tests'.
    tch::set_num_threads(1);
    let anatomy = anatomy::Anatomy::new(config);
    let values = anatomy.params().iter().map(|assembly| {
        let (name, shape) = (&assembly.spec.name, &assembly.spec.shape);
        let drawn = noise::normal(seed, name, shape, 0.4);
        let is_norm = matches!(assembly.parts[0].part, anatomy::Part::NormWeight(_));
        (name.clone(), if is_norm { drawn + 1.0 } else { drawn })
    });
    values.collect()
}

fn tokens() -> Tensor {
    let ids: Vec<i64> = (0..24).map(|i| (i * 7 + i * i) % 17).collect();
    Tensor::from_slice(&ids).view([2, 12])
}

fn plan(width: WidthGrowth, residual: ResidualGrowth, depth: DepthGrowth) -> GrowthPlan {
    GrowthPlan { width, residual, depth, ..GrowthPlan::DEFAULT }
}

fn grown(small: &ModelConfig, target: &ModelConfig, plan: &GrowthPlan) -> NamedWeights {
    let source = Box::new(NamedModel::new(small, weights(small, 1)));
    let model = grow(source, target, plan, ("the small model", 5)).expect("they fit");
    named_weights(&*model, Kind::Double)
}

fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

/// The largest difference of logits between a model and what it has grown into.
fn jump(small: &ModelConfig, target: &ModelConfig, big: &NamedWeights, kind: Kind) -> f64 {
    let cast = |weights: &NamedWeights| -> NamedWeights {
        weights.iter().map(|(name, value)| (name.clone(), value.to_kind(kind))).collect()
    };
    let before = PlainModel::new(small).logits(&cast(&weights(small, 1)), &tokens());
    let after = PlainModel::new(target).logits(&cast(big), &tokens());
    let after = after.narrow(2, 0, small.spec().vocab_size as i64);
    max_difference(&before, &after)
}

fn state(value: f64, weights: &NamedWeights) -> BTreeMap<String, Tensor> {
    weights.iter().map(|(name, weight)| (name.clone(), weight.full_like(value))).collect()
}
