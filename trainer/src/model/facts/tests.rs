//! Facts of both families against shapes worked out by hand.

use grove_optim::{Orientation, Part};

use super::param_facts;
use crate::model::config::ModelConfig;

const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 8192, "hidden_size": 512,
    "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false}"#;

const GPT2: &str = r#"{"model_type": "gpt2", "vocab_size": 8192, "n_positions": 64, "n_embd": 512,
    "n_layer": 2, "n_head": 8, "activation_function": "gelu_new"}"#;

fn facts(json: &str) -> std::collections::BTreeMap<String, super::ParamFacts> {
    param_facts(&ModelConfig::from_hf_json(json).expect("a model"))
}

fn part(num_outputs: i64, outputs_per_block: i64) -> Part {
    Part { num_outputs, outputs_per_block }
}

#[test]
fn heads_of_a_llama_are_blocks_of_q_and_k() {
    let facts = facts(LLAMA);
    let parts = |name: &str| facts[&format!("model.layers.3.{name}.weight")].parts.clone();
    assert_eq!(parts("self_attn.q_proj"), [part(512, 64)]);
    assert_eq!(parts("self_attn.k_proj"), [part(256, 64)]);
    assert_eq!(parts("self_attn.v_proj"), [part(256, 1)]);
    assert_eq!(parts("mlp.down_proj"), [part(512, 1)]);
    assert_eq!(parts("input_layernorm"), [part(512, 512)]);
    assert_eq!(facts["lm_head.weight"].parts, [part(8192, 1)]);
}

#[test]
fn the_fused_matrix_of_a_gpt2_has_three_parts_of_columns() {
    let facts = facts(GPT2);
    let fused = &facts["transformer.h.1.attn.c_attn.weight"];
    assert_eq!(fused.parts, [part(512, 64), part(512, 64), part(512, 1)]);
    assert_eq!((fused.orientation, fused.num_outputs()), (Orientation::InOut, 1536));
    assert_eq!(facts["transformer.ln_f.bias"].parts, [part(512, 1)]);
    assert_eq!(facts["transformer.ln_f.weight"].parts, [part(512, 512)]);
    assert_eq!(facts["transformer.h.0.mlp.c_fc.bias"].parts, [part(2048, 1)]);
}
