//! `config.json` of a Hugging Face model folder: written so that transformers 4 and 5 load it, and
//! read with every feature that these models do not compute refused by name.

use serde_json::{Map, Value, json};

use super::{
    Gpt2Config, LlamaConfig, ModelConfig, ModelConfigError, Parametrization, Precision,
    ResidualForm, default_head_dim,
};
use crate::model::rope_scaling::{BETAS, RopeScaling};

/// Keys whose given value is the only one supported, by family; an absent or null key passes.
const LLAMA_FIXED: [(&str, &str); 5] = [
    ("hidden_act", r#""silu""#),
    ("attention_bias", "false"),
    ("mlp_bias", "false"),
    ("pretraining_tp", "1"),
    ("quantization_config", "null"),
];
const GPT2_FIXED: [(&str, &str); 7] = [
    ("activation_function", r#""gelu_new""#),
    ("scale_attn_weights", "true"),
    ("scale_attn_by_inverse_layer_idx", "false"),
    ("reorder_and_upcast_attn", "false"),
    ("add_cross_attention", "false"),
    ("tie_word_embeddings", "true"),
    ("quantization_config", "null"),
];

impl ModelConfig {
    /// The text of a `config.json` that `AutoModelForCausalLM` accepts, keys sorted, with a
    /// trailing newline.
    ///
    /// `stored` is the type of the weights beside it. Token ids of the start and end of a document
    /// are null, because they belong to the tokenizer; dropout is 0. The rotary base is written
    /// twice, as `rope_theta` for transformers 4 and as `rope_parameters` for 5. A residual form that
    /// transformers has no architecture for is `model_type` `grove`, which only we read.
    pub fn to_hf_json(&self, stored: Precision) -> String {
        let mut object = match self {
            Self::Llama(config) => config.to_json(),
            Self::Gpt2(config) => config.to_json(),
        };
        for (key, value) in [
            ("bos_token_id", Value::Null),
            ("eos_token_id", Value::Null),
            ("pad_token_id", Value::Null),
            ("dtype", json!(stored.hf_dtype())),
            ("torch_dtype", json!(stored.hf_dtype())),
            ("model_type", json!(self.hf_model_type())),
            ("use_cache", json!(true)),
        ] {
            object.insert(key.to_owned(), value);
        }
        let form = self.spec().residual;
        if !form.is_plain() {
            object.insert("architectures".to_owned(), json!(["GroveForCausalLM"]));
            object.insert("grove_family".to_owned(), json!(self.model_type()));
            object.insert("residual".to_owned(), json!(form));
        }
        let text = serde_json::to_string_pretty(&object);
        text.expect("a map of strings to JSON values always serializes") + "\n"
    }

    /// Reads the text of a `config.json`.
    ///
    /// Absent optional keys take transformers' defaults. Dropout rates are ignored, since they do
    /// not change what the model computes once trained.
    ///
    /// # Errors
    /// [`ModelConfigError::Syntax`] if the text is not a JSON object, `Key` for a missing key or a
    /// wrong type, `Unsupported` for a family or feature not computed here, `Invalid` for numbers
    /// that do not fit together.
    pub fn from_hf_json(text: &str) -> Result<Self, ModelConfigError> {
        let object: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| ModelConfigError::Syntax { message: error.to_string() })?;
        let reader = Reader(&object);
        let config = match reader.family() {
            Some("llama") => {
                reader.refuse_unless(&LLAMA_FIXED)?;
                Self::Llama(reader.llama()?)
            }
            // Llama with factors; ours says which parametrization they come from.
            Some("granite") if object.contains_key("parametrization") => {
                reader.refuse_unless(&LLAMA_FIXED)?;
                Self::Llama(reader.llama()?)
            }
            Some("gpt2") => {
                reader.refuse_unless(&GPT2_FIXED)?;
                Self::Gpt2(reader.gpt2()?)
            }
            _ => {
                return Err(reader.unsupported("model_type", r#""llama" or "gpt2""#));
            }
        };
        match config.problems().into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(config),
        }
    }
}

impl ModelConfig {
    /// The architecture in transformers that computes this model: Granite is Llama with factors on
    /// scores, residual branches and logits. `grove` where there is none.
    fn hf_model_type(&self) -> &'static str {
        match self {
            _ if !self.spec().residual.is_plain() => "grove",
            Self::Llama(config) if config.parametrization != Parametrization::Standard => "granite",
            _ => self.model_type(),
        }
    }
}

impl LlamaConfig {
    fn to_json(&self) -> Map<String, Value> {
        let mut plain = self.plain_json();
        if self.parametrization == Parametrization::Standard {
            return plain;
        }
        let scaling = ModelConfig::Llama(self.clone()).spec().scaling;
        plain.extend(object(json!({
            "architectures": ["GraniteForCausalLM"],
            "attention_multiplier": scaling.attention,
            "embedding_multiplier": 1.0,
            "residual_multiplier": scaling.residual(),
            "logits_scaling": scaling.width,
            "parametrization": self.parametrization,
            "base_hidden_size": self.base_hidden_size,
            "base_head_dim": self.base_head_dim,
            "base_num_hidden_layers": self.base_num_hidden_layers,
        })));
        plain
    }

    fn plain_json(&self) -> Map<String, Value> {
        object(json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": false,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": self.rope_parameters(),
            "rope_scaling": self.rope_scaling,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "vocab_size": self.vocab_size,
        }))
    }
}

impl LlamaConfig {
    /// As transformers 5 has it: base, type and the type's numbers in one table.
    fn rope_parameters(&self) -> Map<String, Value> {
        let mut table = match self.rope_scaling {
            Some(scaling) => object(json!(scaling)),
            None => object(json!({ "rope_type": "default" })),
        };
        table.insert("rope_theta".to_owned(), json!(self.rope_theta));
        table
    }
}

impl Gpt2Config {
    fn to_json(&self) -> Map<String, Value> {
        object(json!({
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "initializer_range": self.initializer_range,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "n_embd": self.n_embd,
            "n_head": self.n_head,
            "n_inner": self.n_inner,
            "n_layer": self.n_layer,
            "n_positions": self.n_positions,
            "resid_pdrop": 0.0,
            "tie_word_embeddings": true,
            "vocab_size": self.vocab_size,
        }))
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Typed look-ups in a parsed `config.json`; null counts as absent.
struct Reader<'a>(&'a Map<String, Value>);

impl Reader<'_> {
    fn llama(&self) -> Result<LlamaConfig, ModelConfigError> {
        let hidden_size = self.size("hidden_size")?;
        let num_attention_heads = self.size("num_attention_heads")?;
        let head_dim = match self.size_if_any("head_dim")? {
            Some(head_dim) => head_dim,
            None => default_head_dim(hidden_size, num_attention_heads)?,
        };
        Ok(LlamaConfig {
            vocab_size: self.size("vocab_size")?,
            hidden_size,
            intermediate_size: self.size("intermediate_size")?,
            num_hidden_layers: self.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: self
                .size_if_any("num_key_value_heads")?
                .unwrap_or(num_attention_heads),
            head_dim,
            max_position_embeddings: self.size_if_any("max_position_embeddings")?.unwrap_or(2048),
            rms_norm_eps: self.number("rms_norm_eps", 1e-6)?,
            rope_theta: self.rope_theta()?,
            rope_scaling: self.rope_scaling()?,
            tie_word_embeddings: self.flag("tie_word_embeddings", false)?,
            initializer_range: self.number("initializer_range", 0.02)?,
            parametrization: self.parametrization()?,
            base_hidden_size: self.size_if_any("base_hidden_size")?,
            base_head_dim: self.size_if_any("base_head_dim")?,
            base_num_hidden_layers: self.size_if_any("base_num_hidden_layers")?,
            residual: self.residual()?,
        })
    }

    fn parametrization(&self) -> Result<Parametrization, ModelConfigError> {
        let Some(value) = self.get("parametrization") else {
            return Ok(Parametrization::default());
        };
        serde_json::from_value(value.clone())
            .map_err(|_| self.wrong("parametrization", "\"standard\", \"mup\" or \"complete_p\""))
    }

    fn gpt2(&self) -> Result<Gpt2Config, ModelConfigError> {
        let n_embd = self.size("n_embd")?;
        Ok(Gpt2Config {
            vocab_size: self.size("vocab_size")?,
            n_positions: self.size_if_any("n_positions")?.unwrap_or(1024),
            n_embd,
            n_layer: self.size("n_layer")?,
            n_head: self.size("n_head")?,
            n_inner: self.size_if_any("n_inner")?.unwrap_or(n_embd.saturating_mul(4)),
            layer_norm_epsilon: self.number("layer_norm_epsilon", 1e-5)?,
            initializer_range: self.number("initializer_range", 0.02)?,
            residual: self.residual()?,
        })
    }

    /// The family whose keys these are: `model_type`, or of our own `grove` what it says beside it.
    fn family(&self) -> Option<&str> {
        match self.get("model_type").and_then(Value::as_str) {
            Some("grove") => self.get("grove_family").and_then(Value::as_str),
            other => other,
        }
    }

    /// The residual form of a `grove`; every other model has the plain one.
    fn residual(&self) -> Result<ResidualForm, ModelConfigError> {
        let expected = "a table with norm, gain, skip and scalar_biases";
        match (self.get("model_type").and_then(Value::as_str), self.get("residual")) {
            (Some("grove"), Some(form)) => serde_json::from_value(form.clone())
                .map_err(|_| self.unsupported("residual", expected)),
            (Some("grove"), None) => Err(self.wrong("residual", expected)),
            _ => Ok(ResidualForm::default()),
        }
    }

    /// The rotary base: in `rope_parameters` (transformers 5), else at the top (4), else 10000.
    fn rope_theta(&self) -> Result<f64, ModelConfigError> {
        let Some(parameters) = self.get("rope_parameters") else {
            return self.number("rope_theta", 10_000.0);
        };
        let Some(table) = parameters.as_object() else {
            return Err(self.wrong("rope_parameters", "an object"));
        };
        match table.get("rope_theta") {
            None => self.number("rope_theta", 10_000.0),
            Some(theta) => theta
                .as_f64()
                .ok_or_else(|| self.wrong("rope_parameters", "an object with a number rope_theta")),
        }
    }

    /// The scaling: in `rope_parameters` (transformers 5) or in `rope_scaling` (4). A partial rotary
    /// factor and other types are refused, and two places that differ.
    fn rope_scaling(&self) -> Result<Option<RopeScaling>, ModelConfigError> {
        let new = match self.get("rope_parameters") {
            Some(_) => self.rope_table("rope_parameters", Some("default"))?,
            None => None,
        };
        let Some(_) = self.get("rope_scaling") else { return Ok(new) };
        let old = self.rope_table("rope_scaling", None)?;
        if new.is_some() && new != old {
            return Err(self.unsupported("rope_scaling", "what rope_parameters says"));
        }
        Ok(old)
    }

    fn rope_table(
        &self,
        key: &str,
        default_type: Option<&str>,
    ) -> Result<Option<RopeScaling>, ModelConfigError> {
        let Some(table) = self.get(key).and_then(Value::as_object) else {
            return Err(self.wrong(key, "an object"));
        };
        let expected = r#"rope_type "default", "linear" or "yarn", all of head_dim"#;
        let refused = || self.unsupported(key, expected);
        let given = |name: &str| table.get(name).filter(|value| !value.is_null());
        let number = |name: &str, default: Option<f64>| {
            given(name).map_or(default, Value::as_f64).ok_or_else(refused)
        };
        let partial = number("partial_rotary_factor", Some(1.0))?;
        let others = ["attention_factor", "mscale", "mscale_all_dim", "truncate"];
        if partial != 1.0 || others.iter().any(|name| given(name).is_some()) {
            return Err(refused());
        }
        let rope_type = given("rope_type").or(given("type")).and_then(Value::as_str);
        match rope_type.or(default_type) {
            Some("default") => Ok(None),
            Some("linear") => Ok(Some(RopeScaling::Linear { factor: number("factor", None)? })),
            Some("yarn") => Ok(Some(RopeScaling::Yarn {
                factor: number("factor", None)?,
                original_max_position_embeddings: number("original_max_position_embeddings", None)?
                    as usize,
                beta_fast: number("beta_fast", Some(BETAS.0))?,
                beta_slow: number("beta_slow", Some(BETAS.1))?,
            })),
            _ => Err(refused()),
        }
    }

    fn refuse_unless(&self, fixed: &[(&str, &str)]) -> Result<(), ModelConfigError> {
        for (key, expected) in fixed {
            let supported: Value = serde_json::from_str(expected).expect("the table holds JSON");
            if self.get(key).is_some_and(|value| *value != supported) {
                return Err(self.unsupported(key, expected));
            }
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<usize, ModelConfigError> {
        self.size_if_any(key)?.ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    fn size_if_any(&self, key: &str) -> Result<Option<usize>, ModelConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, ModelConfigError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.wrong(key, "a number"))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, ModelConfigError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))
    }

    fn shown(&self, key: &str) -> String {
        self.0.get(key).map_or_else(|| "missing".to_owned(), Value::to_string)
    }

    fn wrong(&self, key: &str, expected: &str) -> ModelConfigError {
        let (key, expected) = (key.to_owned(), expected.to_owned());
        ModelConfigError::Key { found: self.shown(&key), key, expected }
    }

    fn unsupported(&self, key: &str, expected: &str) -> ModelConfigError {
        let (key, expected) = (key.to_owned(), expected.to_owned());
        ModelConfigError::Unsupported { found: self.shown(&key), key, expected }
    }
}
