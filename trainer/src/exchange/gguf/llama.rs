//! A GGUF file of the Llama family as a model: keys to configuration, names to names, and the
//! rows of q and k back in the order of Hugging Face.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::super::Error;
use super::super::folder::generation_config;
use super::super::matching::{Matching, parameters};
use super::{Gguf, Value, tokenizer};
use crate::checkpoint::{Dtype, ExtraFile, TensorSpec};
use crate::model::config::{DecoderSpec, ModelConfig};

/// Names within a block: llama.cpp's and ours.
const BLOCK_NAMES: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// A Llama in a GGUF file.
#[derive(Debug)]
pub(crate) struct LlamaGguf {
    file: Gguf,
    config: ModelConfig,
    specs: Vec<TensorSpec>,
    /// Our name to the name in the file.
    places: BTreeMap<String, String>,
}

impl LlamaGguf {
    /// Opens a file and finds every parameter of its model.
    ///
    /// # Errors
    /// [`Error::Gguf`] if the file is damaged, [`Error::GgufKey`] if it is of another family or
    /// asks for what is not computed here, [`Error::Tensors`] with all tensors that do not fit.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = Gguf::open(path)?;
        let config = llama_config(&file)?;
        let specs = parameters(path, &config, file.tensors().count())?;
        let mut matching = Matching::new(&specs);
        for (name, tensor) in file.tensors() {
            let (shape, dtype) = (tensor.shape.clone(), Dtype::F32);
            let spec = TensorSpec { name: our_name(name), dtype, shape };
            matching.add(&spec, name.to_owned());
        }
        let places = matching.finish(path)?;
        Ok(Self { file, config, specs, places })
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub(crate) fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// The values of one parameter, as little-endian f32; `None` if there is none of this name.
    pub(crate) fn values(&self, name: &str) -> Option<Vec<u8>> {
        let values = self.file.values(self.places.get(name)?)?;
        let is_rotated = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
        let values = if is_rotated { half_split(&values, &self.config.spec()) } else { values };
        Some(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// The tokenizer and `generation_config.json`, and what could not be taken over.
    ///
    /// # Errors
    /// [`Error::Gguf`] if the tokenizer's lists contradict each other.
    pub(crate) fn files(&self) -> Result<(Vec<ExtraFile<'static>>, Vec<String>), Error> {
        let (mut files, mut notes) = (Vec::new(), Vec::new());
        match tokenizer::to_json(&self.file)? {
            Ok(file) => files.push(file),
            Err(why) => notes.push(format!("no tokenizer.json: {why}")),
        }
        let id = |key: &str| match self.file.value(&format!("tokenizer.ggml.{key}")) {
            Some(Value::Unsigned(id)) => json!(id),
            _ => json!(null),
        };
        let ids = [
            ("bos_token_id", id("bos_token_id")),
            ("eos_token_id", id("eos_token_id")),
            ("pad_token_id", id("padding_token_id")),
        ];
        files.extend(generation_config(ids.into()));
        Ok((files, notes))
    }
}

/// Rows of q or k from interleaved rotary pairs to half-split ones.
///
/// llama.cpp turns neighbors (2 i, 2 i + 1) of a head and stores rows so; Hugging Face turns
/// (i, i + H/2). With rows `[head, i, half]` there and `[head, half, i]` here, `half` and `i`
/// change places.
fn half_split(values: &[f32], spec: &DecoderSpec) -> Vec<f32> {
    let (width, head_dim) = (spec.hidden_size, spec.head_dim);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * width) {
        for half in 0..2 {
            for pair in 0..head_dim / 2 {
                out.extend_from_slice(&head[(2 * pair + half) * width..][..width]);
            }
        }
    }
    out
}

/// Our name of a tensor; its own if we have none for it.
fn our_name(name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => return "model.norm.weight".to_owned(),
        "output.weight" => return "lm_head.weight".to_owned(),
        _ => {}
    }
    let in_block = || {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let part = rest.strip_suffix(".weight")?;
        let (_, ours) = BLOCK_NAMES.iter().find(|(theirs, _)| *theirs == part)?;
        Some(format!("model.layers.{layer}.{ours}.weight"))
    };
    in_block().unwrap_or_else(|| name.to_owned())
}

/// The model that the metadata describes.
fn llama_config(file: &Gguf) -> Result<ModelConfig, Error> {
    let keys = Keys(file);
    if file.text("general.architecture") != Some("llama") {
        return Err(keys.wrong("general.architecture", "\"llama\""));
    }
    for (key, only) in [("llama.expert_count", 0), ("llama.expert_used_count", 0)] {
        if keys.size_if_any(key)?.is_some_and(|count| count != only) {
            return Err(keys.wrong(key, "0: no mixture of experts"));
        }
    }
    if file.text("llama.rope.scaling.type").is_some_and(|kind| kind != "none") {
        return Err(keys.wrong("llama.rope.scaling.type", "none"));
    }
    let hidden_size = keys.size("llama.embedding_length")?;
    let num_attention_heads = keys.size("llama.attention.head_count")?;
    let head_dim = match keys.size_if_any("llama.attention.key_length")? {
        Some(head_dim) => head_dim,
        None => crate::model::config::default_head_dim(hidden_size, num_attention_heads)?,
    };
    for key in ["llama.rope.dimension_count", "llama.attention.value_length"] {
        if keys.size_if_any(key)?.is_some_and(|dims| dims != head_dim) {
            return Err(keys.wrong(key, &format!("the width of a head, {head_dim}")));
        }
    }
    let embedding = file.tensors().find(|(name, _)| *name == "token_embd.weight");
    let vocab_size = embedding.map_or(0, |(_, tensor)| tensor.shape[0]);
    let has_head = file.tensors().any(|(name, _)| name == "output.weight");
    // As Hugging Face writes them, so that what is read there is read here.
    let config = json!({
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": keys.size("llama.feed_forward_length")?,
        "num_hidden_layers": keys.size("llama.block_count")?,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": keys.size_if_any("llama.attention.head_count_kv")?,
        "head_dim": head_dim,
        "max_position_embeddings": keys.size("llama.context_length")?,
        "rms_norm_eps": keys.number("llama.attention.layer_norm_rms_epsilon", 1e-5)?,
        "rope_theta": keys.number("llama.rope.freq_base", 10_000.0)?,
        "tie_word_embeddings": !has_head,
    });
    Ok(ModelConfig::from_hf_json(&config.to_string())?)
}

/// Typed look-ups in the metadata.
struct Keys<'a>(&'a Gguf);

impl Keys<'_> {
    fn size(&self, key: &str) -> Result<usize, Error> {
        self.size_if_any(key)?.ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    fn size_if_any(&self, key: &str) -> Result<Option<usize>, Error> {
        let size = match self.0.value(key) {
            None => return Ok(None),
            Some(Value::Unsigned(size)) => usize::try_from(*size).ok(),
            Some(Value::Signed(size)) => usize::try_from(*size).ok(),
            Some(_) => None,
        };
        size.map(Some).ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, Error> {
        match self.0.value(key) {
            None => Ok(default),
            // The shortest decimal that is this f32, which is what was meant: 1e-5, not 9.9999997e-6.
            Some(Value::Single(number)) => {
                number.to_string().parse().map_err(|_| self.wrong(key, "a number"))
            }
            Some(Value::Double(number)) => Ok(*number),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = match (self.0.value(key), self.0.text(key)) {
            (_, Some(text)) => format!("{text:?}"),
            (Some(value), None) => format!("{value:?}"),
            (None, None) => "missing".to_owned(),
        };
        let (path, key, expected) = (self.0.path().to_owned(), key.to_owned(), expected.to_owned());
        Error::GgufKey { path, key, found, expected }
    }
}
