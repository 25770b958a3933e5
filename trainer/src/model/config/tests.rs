//! Tests of the model configurations: accounts against hand-derived numbers, and `config.json`.

use super::*;

fn gpt2_small() -> ModelConfig {
    ModelConfig::Gpt2(Gpt2Config {
        vocab_size: 50257,
        n_positions: 1024,
        n_embd: 768,
        n_layer: 12,
        n_head: 12,
        n_inner: 3072,
        layer_norm_epsilon: 1e-5,
        initializer_range: 0.02,
        residual: ResidualForm::default(),
    })
}

fn llama_8b() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14_336,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        head_dim: 128,
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: None,
        tie_word_embeddings: false,
        initializer_range: 0.02,
        residual: ResidualForm::default(),
        parametrization: Parametrization::Standard,
        base_hidden_size: None,
        base_head_dim: None,
        base_num_hidden_layers: None,
    }
}

fn edited(config: &ModelConfig, key: &str, value: serde_json::Value) -> String {
    let mut json: serde_json::Value =
        serde_json::from_str(&config.to_hf_json(Precision::Fp32)).unwrap();
    json[key] = value;
    json.to_string()
}

fn refusal(text: &str) -> String {
    ModelConfig::from_hf_json(text).unwrap_err().to_string()
}

#[test]
fn parameter_counts_are_the_published_ones() {
    // GPT-2 small and Llama-3.1-8B as transformers counts them (num_parameters()).
    assert_eq!(gpt2_small().spec().num_parameters(), 124_439_808);
    let mut llama = llama_8b();
    assert_eq!(ModelConfig::Llama(llama.clone()).spec().num_parameters(), 8_030_261_248);
    llama.tie_word_embeddings = true;
    assert_eq!(ModelConfig::Llama(llama).spec().num_parameters(), 8_030_261_248 - 128_256 * 4096);
}

#[test]
fn flops_are_the_hand_derived_ones() {
    assert_eq!(gpt2_small().spec().flops_per_token(1024), 797_815_296);
    // Llama-3.1-8B: 6 (32 * 218103808 + 128256 * 4096) + 6 * 32 * 8192 * 32 * 128.
    let spec = ModelConfig::Llama(llama_8b()).spec();
    assert_eq!(spec.block_matmul_parameters(), 218_103_808);
    assert_eq!(spec.flops_per_token(8192), 45_027_950_592 + 6_442_450_944);
}

#[test]
fn config_json_round_trips() {
    let mut odd = llama_8b();
    odd.head_dim = 96;
    odd.tie_word_embeddings = true;
    odd.rms_norm_eps = 3e-7;
    for config in [gpt2_small(), ModelConfig::Llama(llama_8b()), ModelConfig::Llama(odd)] {
        let text = config.to_hf_json(Precision::Bf16);
        assert_eq!(ModelConfig::from_hf_json(&text).unwrap(), config);
        assert!(text.contains(r#""dtype": "bfloat16""#), "{text}");
    }
}

#[test]
fn config_json_of_either_transformers_is_read() {
    let five = edited(&ModelConfig::Llama(llama_8b()), "rope_theta", serde_json::Value::Null);
    let four = edited(&ModelConfig::Llama(llama_8b()), "rope_parameters", serde_json::Value::Null);
    for text in [five, four] {
        assert_eq!(ModelConfig::from_hf_json(&text).unwrap(), ModelConfig::Llama(llama_8b()));
    }
    let sparse = r#"{"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12,
        "n_head": 12, "resid_pdrop": 0.1, "n_inner": null}"#;
    assert_eq!(ModelConfig::from_hf_json(sparse).unwrap(), gpt2_small());
}

#[test]
fn unsupported_features_are_refused_by_name() {
    let llama = ModelConfig::Llama(llama_8b());
    for (key, value, message) in [
        (
            "attention_bias",
            serde_json::json!(true),
            "attention_bias = true is not supported; expected false",
        ),
        (
            "hidden_act",
            serde_json::json!("gelu"),
            "hidden_act = \"gelu\" is not supported; expected \"silu\"",
        ),
        (
            "rope_scaling",
            serde_json::json!({"factor": 8.0}),
            "rope_scaling = {\"factor\":8.0} is not supported; expected rope_type \"default\", \
             \"linear\" or \"yarn\", all of head_dim",
        ),
        (
            "rope_parameters",
            serde_json::json!({"rope_type": "llama3", "rope_theta": 5e5}),
            "rope_parameters = {\"rope_theta\":500000.0,\"rope_type\":\"llama3\"} is not supported; \
             expected rope_type \"default\", \"linear\" or \"yarn\", all of head_dim",
        ),
        (
            "model_type",
            serde_json::json!("mixtral"),
            "model_type = \"mixtral\" is not supported; expected \"llama\" or \"gpt2\"",
        ),
    ] {
        assert_eq!(refusal(&edited(&llama, key, value)), format!("config.json: {message}"));
    }
    assert_eq!(
        refusal(&edited(&gpt2_small(), "tie_word_embeddings", serde_json::json!(false))),
        "config.json: tie_word_embeddings = false is not supported; expected true"
    );
}

#[test]
fn malformed_config_json_is_named() {
    let llama = ModelConfig::Llama(llama_8b());
    assert_eq!(
        refusal(&edited(&llama, "hidden_size", serde_json::json!("wide"))),
        "config.json: hidden_size is \"wide\"; expected a positive integer"
    );
    assert_eq!(
        refusal(r#"{"model_type": "gpt2"}"#),
        "config.json: n_embd is missing; expected a positive integer"
    );
    assert!(refusal("[1]").starts_with("config.json is not a JSON object: "), "{}", refusal("[1]"));
}

#[test]
fn broken_architectures_state_the_rule() {
    let mut llama = llama_8b();
    llama.num_key_value_heads = 5;
    llama.head_dim = 127;
    llama.vocab_size = 0;
    let found: Vec<String> =
        ModelConfig::Llama(llama).problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "vocab_size = 0 must be above 0; set a positive vocab_size",
            "num_key_value_heads = 5 does not divide num_attention_heads = 32; \
             use one of its divisors (1, 2, 4, 8, 16, 32)",
            "head_dim = 127 is odd, and rotary positions turn pairs; use an even head_dim",
        ]
    );
    assert_eq!(
        default_head_dim(100, 8).unwrap_err().to_string(),
        "num_attention_heads = 8 does not divide hidden_size = 100; \
         use one of its divisors (1, 2, 4), or set head_dim"
    );
}

#[test]
fn scaled_rotary_frequencies_are_written_and_read_in_both_forms() {
    for scaling in [
        RopeScaling::Linear { factor: 4.0 },
        RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 2048,
            beta_fast: 32.0,
            beta_slow: 1.0,
        },
    ] {
        let llama = ModelConfig::Llama(LlamaConfig { rope_scaling: Some(scaling), ..llama_8b() });
        let text = llama.to_hf_json(Precision::Fp32);
        assert_eq!(ModelConfig::from_hf_json(&text), Ok(llama.clone()));
        for place in ["rope_scaling", "rope_parameters"] {
            let one = edited(&llama, place, serde_json::Value::Null);
            assert_eq!(ModelConfig::from_hf_json(&one), Ok(llama.clone()), "{place}");
        }
        let other = serde_json::json!({"rope_type": "linear", "factor": 3.0});
        let text = refusal(&edited(&llama, "rope_scaling", other));
        assert!(text.contains("expected what rope_parameters says"), "{text}");
    }
}
