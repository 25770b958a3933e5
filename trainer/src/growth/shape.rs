//! Configurations between the source's and the target's: one operator's axes changed at a time.

use crate::model::config::ModelConfig;

/// With so many blocks.
pub fn with_layers(config: &ModelConfig, num_layers: usize) -> ModelConfig {
    let mut config = config.clone();
    match &mut config {
        ModelConfig::Llama(llama) => llama.num_hidden_layers = num_layers,
        ModelConfig::Gpt2(gpt2) => gpt2.n_layer = num_layers,
    }
    config
}

/// With a head of its own, where the family can have one.
pub fn untied(config: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    if let ModelConfig::Llama(llama) = &mut config {
        llama.tie_word_embeddings = false;
    }
    config
}

/// With the vocabulary and positions of `target`, and all that rows do not decide.
pub fn with_rows(config: &ModelConfig, target: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    match (&mut config, target) {
        (ModelConfig::Llama(llama), ModelConfig::Llama(target)) => {
            llama.vocab_size = target.vocab_size;
            llama.max_position_embeddings = target.max_position_embeddings;
            llama.rope_theta = target.rope_theta;
            llama.rope_scaling = target.rope_scaling;
            llama.initializer_range = target.initializer_range;
        }
        (ModelConfig::Gpt2(gpt2), ModelConfig::Gpt2(target)) => {
            gpt2.vocab_size = target.vocab_size;
            gpt2.n_positions = target.n_positions;
            gpt2.initializer_range = target.initializer_range;
        }
        _ => {}
    }
    config
}

/// With the widths, heads and epsilon of `target`.
pub fn with_widths(config: &ModelConfig, target: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    match (&mut config, target) {
        (ModelConfig::Llama(llama), ModelConfig::Llama(target)) => {
            llama.hidden_size = target.hidden_size;
            llama.intermediate_size = target.intermediate_size;
            llama.num_attention_heads = target.num_attention_heads;
            llama.num_key_value_heads = target.num_key_value_heads;
            llama.rms_norm_eps = target.rms_norm_eps;
        }
        (ModelConfig::Gpt2(gpt2), ModelConfig::Gpt2(target)) => {
            gpt2.n_embd = target.n_embd;
            gpt2.n_head = target.n_head;
            gpt2.n_inner = target.n_inner;
            gpt2.layer_norm_epsilon = target.layer_norm_epsilon;
        }
        _ => {}
    }
    config
}
