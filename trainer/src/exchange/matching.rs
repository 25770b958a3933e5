//! Which stored tensor is which parameter of the model; all that does not fit is named at once.

use std::collections::BTreeMap;
use std::path::Path;

use super::Error;
use crate::checkpoint::{Dtype, TensorSpec};
use crate::model::config::ModelConfig;
use crate::model::units::UnitMap;

/// Buffers that transformers has written beside the weights, by the ends of their names: GPT-2's
/// causal mask and its fill value, Llama's rotary frequencies. They follow from the config.
const BUFFERS: [&str; 3] = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];

/// Prefixes that a folder saved from the model without its head lacks.
const PREFIXES: [&str; 2] = ["model.", "transformer."];

/// The head's name, which a folder may hold though the head is the embedding.
const HEAD: &str = "lm_head.weight";

/// Whether a name is of a buffer that carries nothing.
pub(super) fn is_buffer(name: &str) -> bool {
    BUFFERS.iter().any(|end| name.ends_with(end) || name == &end[1..])
}

/// The parameters of a model, in its order, as F32.
///
/// # Errors
/// [`Error::Tensors`] if the model has more layers than there are tensors stored: then a number in
/// the file is wrong, and must not size anything.
pub(super) fn parameters(
    path: &Path,
    config: &ModelConfig,
    num_stored: usize,
) -> Result<Vec<TensorSpec>, Error> {
    let num_layers = config.spec().num_layers;
    if num_layers > num_stored {
        let problems = vec![format!("{num_stored} tensors for a model of {num_layers} layers")];
        return Err(Error::Tensors { path: path.to_owned(), problems });
    }
    let params = UnitMap::new(config).units.into_iter().flat_map(|unit| unit.params);
    let specs = params.map(|param| TensorSpec {
        name: param.name,
        dtype: Dtype::F32,
        shape: param.shape.iter().map(|&size| size as usize).collect(),
    });
    Ok(specs.collect())
}

/// Stored tensors with places of type `P`, by the parameter that each is.
pub(super) struct Matching<'a, P> {
    expected: BTreeMap<&'a str, &'a TensorSpec>,
    pub(super) places: BTreeMap<String, P>,
    /// A head where the model has none of its own.
    pub(super) spare_head: Option<P>,
    problems: Vec<String>,
}

impl<'a, P> Matching<'a, P> {
    /// Nothing matched yet.
    pub(super) fn new(expected: &'a [TensorSpec]) -> Self {
        let expected = expected.iter().map(|spec| (spec.name.as_str(), spec)).collect();
        Self { expected, places: BTreeMap::new(), spare_head: None, problems: Vec::new() }
    }

    /// Finds the parameter that a stored tensor of this name is.
    pub(super) fn add(&mut self, stored: &TensorSpec, place: P) {
        let name = &stored.name;
        let prefixed = PREFIXES.iter().map(|prefix| format!("{prefix}{name}"));
        let mut candidates = std::iter::once(name.clone()).chain(prefixed);
        let Some(ours) = candidates.find(|name| self.expected.contains_key(name.as_str())) else {
            if name == HEAD {
                self.spare_head = Some(place);
            } else if !is_buffer(name) {
                self.problems.push(format!("{name} is extra ({stored})"));
            }
            return;
        };
        let expected = self.expected[ours.as_str()];
        if stored.shape != expected.shape || stored.dtype == Dtype::U8 {
            let shape = &expected.shape;
            self.problems.push(format!("{name} is {stored}, expected numbers of shape {shape:?}"));
        }
        if self.places.insert(ours, place).is_some() {
            self.problems.push(format!("{name} is there twice, with and without a prefix"));
        }
    }

    /// Expects no biases if none of them has been found: a GPT-2 that was trained without. Returns
    /// whether that is so. Biases of 0 compute the same.
    pub(super) fn do_without_biases(&mut self) -> bool {
        let is_bias = |name: &str| name.ends_with(".bias");
        let has_none = !self.places.keys().any(|name| is_bias(name));
        let lacks = has_none && self.expected.keys().any(|name| is_bias(name));
        if lacks {
            self.expected.retain(|name, _| !is_bias(name));
        }
        lacks
    }

    /// Notes something else that is wrong.
    pub(super) fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// The places of all parameters.
    ///
    /// # Errors
    /// [`Error::Tensors`] with all that is wrong.
    pub(super) fn finish(mut self, path: &Path) -> Result<BTreeMap<String, P>, Error> {
        let missing = self.expected.iter().filter(|(name, _)| !self.places.contains_key(**name));
        for (name, spec) in missing {
            let remedy = match *name {
                HEAD => "; if the head is the embedding, set tie_word_embeddings to true",
                _ => "",
            };
            self.problems.push(format!("{name} is missing (expected {:?}{remedy})", spec.shape));
        }
        if self.problems.is_empty() {
            return Ok(self.places);
        }
        Err(Error::Tensors { path: path.to_owned(), problems: self.problems })
    }
}
