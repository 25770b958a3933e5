//! What a model is: each family's configuration under its Hugging Face keys, and the one
//! normalized view of it ([`DecoderSpec`]) that the layers are built from.

mod hf_json;
mod spec;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use super::residual::{BranchGain, NormPlacement, ResidualForm};
pub use super::rope_scaling::RopeScaling;
pub use super::scaling::{Parametrization, Scaling};
pub use spec::{DecoderSpec, Mlp, NormKind, Position};

/// Why a model configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ModelConfigError {
    /// A value breaks a rule of the architecture.
    #[error("{key} = {found} {problem}; {remedy}")]
    Invalid {
        /// The Hugging Face key, such as `hidden_size`.
        key: String,
        /// Its value.
        found: String,
        /// The rule that fails, with the other numbers in it.
        problem: String,
        /// What to write instead.
        remedy: String,
    },
    /// A `config.json` asks for something this crate does not compute.
    #[error("config.json: {key} = {found} is not supported; expected {expected}")]
    Unsupported {
        /// The key in `config.json`.
        key: String,
        /// Its value, as JSON.
        found: String,
        /// What is supported.
        expected: String,
    },
    /// A `config.json` lacks a key, or holds it with the wrong type.
    #[error("config.json: {key} is {found}; expected {expected}")]
    Key {
        /// The key in `config.json`.
        key: String,
        /// What is there, as JSON, or `missing`.
        found: String,
        /// The type that is needed.
        expected: String,
    },
    /// A `config.json` is not a JSON object.
    #[error("config.json is not a JSON object: {message}; expected one written by transformers")]
    Syntax {
        /// The parser's message, with line and column.
        message: String,
    },
}

/// The arithmetic of a run, or the type of stored weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Compute in bfloat16, master weights and sums in fp32.
    Bf16,
    /// IEEE binary32 throughout.
    Fp32,
    /// IEEE binary64 throughout, for tests of exactness.
    Fp64,
}

impl Precision {
    /// The name of this type in a Hugging Face `config.json`.
    pub fn hf_dtype(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::Fp32 => "float32",
            Self::Fp64 => "float64",
        }
    }
}

/// A model's configuration, one variant per family; every number is final.
///
/// In TOML it is the `[model]` table (tagged by `model_type`); [`ModelConfig::to_hf_json`] writes
/// the `config.json` of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type", rename_all = "lowercase")]
pub enum ModelConfig {
    /// Touvron et al. 2023, arXiv:2302.13971; grouped-query attention as in arXiv:2307.09288.
    Llama(LlamaConfig),
    /// Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
    Gpt2(Gpt2Config),
}

/// A Llama decoder: RMSNorm, rotary positions, SwiGLU, no biases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the gated MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads per block.
    pub num_attention_heads: usize,
    /// Key and value heads per block; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; even, because rotary positions turn pairs.
    pub head_dim: usize,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square inside RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are scaled for a longer context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// The form of the residual stream.
    #[serde(default, skip_serializing_if = "ResidualForm::is_plain")]
    pub residual: ResidualForm,
    /// How initial values, updates and multipliers depend on the size.
    #[serde(default)]
    pub parametrization: Parametrization,
    /// Width of the model that the hyper-parameters were tuned at; none where it does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_hidden_size: Option<usize>,
    /// Width of a head there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_head_dim: Option<usize>,
    /// Number of blocks there; none where it does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_num_hidden_layers: Option<usize>,
}

/// A GPT-2 decoder: LayerNorm, learned positions, GELU (tanh form), biases, tied head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpt2Config {
    /// Rows of the embedding, which is also the head.
    pub vocab_size: usize,
    /// Rows of the position embedding: the longest sequence, in tokens.
    pub n_positions: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Heads per block; divides `n_embd`.
    pub n_head: usize,
    /// Width inside the MLP.
    pub n_inner: usize,
    /// Added to the variance inside LayerNorm.
    pub layer_norm_epsilon: f64,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// The form of the residual stream.
    #[serde(default, skip_serializing_if = "ResidualForm::is_plain")]
    pub residual: ResidualForm,
}

impl ModelConfig {
    /// Multiplies the epsilon of all norms.
    pub(super) fn scale_eps(&mut self, factor: f64) {
        match self {
            Self::Llama(llama) => llama.rms_norm_eps *= factor,
            Self::Gpt2(gpt2) => gpt2.layer_norm_epsilon *= factor,
        }
    }

    /// The family's name in `model_type`.
    pub fn model_type(&self) -> &'static str {
        match self {
            Self::Llama(_) => "llama",
            Self::Gpt2(_) => "gpt2",
        }
    }

    /// The view that the layers, the memory account and the FLOP account are built from.
    pub fn spec(&self) -> DecoderSpec {
        match self {
            Self::Llama(config) => config.spec(),
            Self::Gpt2(config) => config.spec(),
        }
    }

    /// Every rule of the architecture that these numbers break, in a fixed order; empty if sound.
    pub fn problems(&self) -> Vec<ModelConfigError> {
        match self {
            Self::Llama(config) => config.problems(),
            Self::Gpt2(config) => config.problems(),
        }
    }
}

/// The head width where none is written: `hidden_size / num_attention_heads`.
///
/// # Errors
/// [`ModelConfigError::Invalid`] if the heads do not divide the width.
pub fn default_head_dim(hidden_size: usize, num_heads: usize) -> Result<usize, ModelConfigError> {
    if num_heads == 0 || !hidden_size.is_multiple_of(num_heads) {
        return Err(ModelConfigError::Invalid {
            key: "num_attention_heads".to_owned(),
            found: num_heads.to_string(),
            problem: format!("does not divide hidden_size = {hidden_size}"),
            remedy: format!(
                "use one of its divisors ({}), or set head_dim",
                divisors_in_words(hidden_size)
            ),
        });
    }
    Ok(hidden_size / num_heads)
}

impl LlamaConfig {
    fn spec(&self) -> DecoderSpec {
        DecoderSpec {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_layers: self.num_hidden_layers,
            num_heads: self.num_attention_heads,
            num_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            intermediate_size: self.intermediate_size,
            norm: NormKind::Rms,
            eps: self.rms_norm_eps,
            position: Position::Rotary { theta: self.rope_theta, scaling: self.rope_scaling },
            mlp: Mlp::SwiGlu,
            bias: false,
            tied: self.tie_word_embeddings,
            residual: self.residual,
            scaling: self.scaling(),
            writer_layers: self.base_num_hidden_layers.unwrap_or(self.num_hidden_layers),
            max_positions: self.max_position_embeddings,
            initializer_range: self.initializer_range,
        }
    }

    /// The size relative to the base: 1 in all that the parametrization does not count.
    fn scaling(&self) -> Scaling {
        let standard = Scaling::standard(self.head_dim);
        if self.parametrization == Parametrization::Standard {
            return standard;
        }
        let relative = |own: usize, base: Option<usize>| own as f64 / base.unwrap_or(own) as f64;
        let base_head_dim = self.base_head_dim.unwrap_or(self.head_dim) as f64;
        Scaling {
            width: relative(self.hidden_size, self.base_hidden_size),
            depth: relative(self.num_hidden_layers, self.base_num_hidden_layers),
            attention: base_head_dim.sqrt() / self.head_dim as f64,
        }
    }

    fn problems(&self) -> Vec<ModelConfigError> {
        let mut found = Vec::new();
        for (key, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            found.extend(not_positive(key, value as f64, value));
        }
        for (key, value) in [
            ("base_hidden_size", self.base_hidden_size),
            ("base_head_dim", self.base_head_dim),
            ("base_num_hidden_layers", self.base_num_hidden_layers),
        ] {
            found.extend(value.and_then(|value| not_positive(key, value as f64, value)));
        }
        for (key, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("residual.skip", self.residual.skip),
            ("initializer_range", self.initializer_range),
        ] {
            found.extend(not_positive(key, value, format!("{value:?}")));
        }
        if self.num_key_value_heads > 0
            && !self.num_attention_heads.is_multiple_of(self.num_key_value_heads)
        {
            let heads = self.num_attention_heads;
            found.push(ModelConfigError::Invalid {
                key: "num_key_value_heads".to_owned(),
                found: self.num_key_value_heads.to_string(),
                problem: format!("does not divide num_attention_heads = {heads}"),
                remedy: format!("use one of its divisors ({})", divisors_in_words(heads)),
            });
        }
        let factor = self.rope_scaling.map_or(1.0, |scaling| scaling.factor());
        if !(factor >= 1.0 && factor.is_finite()) {
            found.push(ModelConfigError::Invalid {
                key: "rope_scaling.factor".to_owned(),
                found: format!("{factor:?}"),
                problem: "is not a factor by which a context grows".to_owned(),
                remedy: "use 1.0 or more".to_owned(),
            });
        }
        if !self.head_dim.is_multiple_of(2) {
            found.push(ModelConfigError::Invalid {
                key: "head_dim".to_owned(),
                found: self.head_dim.to_string(),
                problem: "is odd, and rotary positions turn pairs".to_owned(),
                remedy: "use an even head_dim".to_owned(),
            });
        }
        found
    }
}

impl Gpt2Config {
    fn spec(&self) -> DecoderSpec {
        DecoderSpec {
            vocab_size: self.vocab_size,
            hidden_size: self.n_embd,
            num_layers: self.n_layer,
            num_heads: self.n_head,
            num_kv_heads: self.n_head,
            head_dim: self.n_embd / self.n_head.max(1),
            intermediate_size: self.n_inner,
            norm: NormKind::Layer,
            eps: self.layer_norm_epsilon,
            position: Position::Learned { max: self.n_positions },
            mlp: Mlp::Gelu,
            bias: true,
            tied: true,
            residual: self.residual,
            scaling: Scaling::standard(self.n_embd / self.n_head.max(1)),
            writer_layers: self.n_layer,
            max_positions: self.n_positions,
            initializer_range: self.initializer_range,
        }
    }

    fn problems(&self) -> Vec<ModelConfigError> {
        let mut found = Vec::new();
        for (key, value) in [
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_inner", self.n_inner),
        ] {
            found.extend(not_positive(key, value as f64, value));
        }
        for (key, value) in [
            ("layer_norm_epsilon", self.layer_norm_epsilon),
            ("residual.skip", self.residual.skip),
            ("initializer_range", self.initializer_range),
        ] {
            found.extend(not_positive(key, value, format!("{value:?}")));
        }
        if self.n_head > 0 && !self.n_embd.is_multiple_of(self.n_head) {
            found.push(ModelConfigError::Invalid {
                key: "n_head".to_owned(),
                found: self.n_head.to_string(),
                problem: format!("does not divide n_embd = {}", self.n_embd),
                remedy: format!("use one of its divisors ({})", divisors_in_words(self.n_embd)),
            });
        }
        found
    }
}

fn not_positive(key: &str, value: f64, shown: impl ToString) -> Option<ModelConfigError> {
    (value <= 0.0 || !value.is_finite()).then(|| ModelConfigError::Invalid {
        key: key.to_owned(),
        found: shown.to_string(),
        problem: "must be above 0".to_owned(),
        remedy: format!("set a positive {key}"),
    })
}

/// The divisors of a size for a remedy: all of them, or the powers of two among many.
fn divisors_in_words(size: usize) -> String {
    const MOST_SHOWN: usize = 8;
    let all: Vec<usize> = (1..=size.min(4096)).filter(|d| size.is_multiple_of(*d)).collect();
    let shown: Vec<usize> = if all.len() <= MOST_SHOWN {
        all
    } else {
        all.into_iter().filter(|d| d.is_power_of_two()).take(MOST_SHOWN).collect()
    };
    let words: Vec<String> = shown.iter().map(ToString::to_string).collect();
    words.join(", ")
}
