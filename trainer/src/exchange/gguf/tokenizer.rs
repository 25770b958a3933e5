//! The tokenizer in a GGUF file as a Hugging Face `tokenizer.json`: byte-level BPE, where the
//! split of text before it is one that is known.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::super::Error;
use super::Gguf;
use crate::checkpoint::ExtraFile;

/// Kinds of tokens that are never made of other tokens: control tokens and those of the user.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// A `tokenizer.json`; the inner error says why there is none, which is no failure of the file.
///
/// # Errors
/// [`Error::Gguf`] if the lists of tokens, kinds and merges contradict each other.
pub(super) fn to_json(file: &Gguf) -> Result<Result<ExtraFile<'static>, String>, Error> {
    let model = file.text("tokenizer.ggml.model").unwrap_or("missing");
    if model != "gpt2" {
        return Ok(Err(format!("tokenizer.ggml.model is {model}, only gpt2 is converted")));
    }
    let split = file.text("tokenizer.ggml.pre").unwrap_or("missing");
    let Some(pre_tokenizer) = pre_tokenizer(split) else {
        return Ok(Err(format!("tokenizer.ggml.pre is {split}, only gpt-2 and smollm are known")));
    };
    let refuse = |reason: String| Error::Gguf { path: file.path().to_owned(), byte: 0, reason };
    let list = |key: &str| {
        file.texts(key).ok_or_else(|| refuse(format!("{key} is no list of UTF-8 texts")))
    };
    let (tokens, merges) = (list("tokenizer.ggml.tokens")?, list("tokenizer.ggml.merges")?);
    let kinds = file.integers("tokenizer.ggml.token_type").unwrap_or_else(|| vec![1; tokens.len()]);
    if kinds.len() != tokens.len() {
        let reason =
            format!("{} tokens, but {} tokenizer.ggml.token_type", tokens.len(), kinds.len());
        return Err(refuse(reason));
    }
    let known: BTreeSet<&str> = tokens.iter().copied().collect();
    if known.len() != tokens.len() {
        return Err(refuse("tokenizer.ggml.tokens has a token twice".to_owned()));
    }
    let is_pair = |merge: &&str| {
        merge.split_once(' ').is_some_and(|(a, b)| known.contains(a) && known.contains(b))
    };
    if let Some(merge) = merges.iter().find(|merge| !is_pair(merge)) {
        return Err(refuse(format!("tokenizer.ggml.merges has {merge:?}, which is no two tokens")));
    }
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let merges: Vec<_> = merges.iter().filter_map(|merge| merge.split_once(' ')).collect();
    let text = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(&tokens, &kinds),
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    });
    let bytes = text.to_string().into_bytes().into();
    Ok(Ok(ExtraFile::Content { name: "tokenizer.json".to_owned(), bytes }))
}

fn added_tokens(tokens: &[&str], kinds: &[i32]) -> Vec<Value> {
    let numbered = tokens.iter().zip(kinds).enumerate();
    let added = numbered.filter(|(_, (_, kind))| [CONTROL, USER_DEFINED].contains(*kind));
    let described = added.map(|(id, (token, kind))| {
        json!({
            "id": id,
            "content": token,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": *kind == CONTROL,
        })
    });
    described.collect()
}

/// How llama.cpp's `LLAMA_VOCAB_PRE_TYPE` of this name splits text before the merges.
fn pre_tokenizer(name: &str) -> Option<Value> {
    match name {
        "gpt-2" => Some(byte_level()),
        "smollm" => Some(json!({
            "type": "Sequence",
            "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level()],
        })),
        _ => None,
    }
}

fn byte_level() -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": true,
    })
}
