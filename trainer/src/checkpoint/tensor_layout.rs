//! Where each byte of a safetensors file lies, known before there is a value: the same on every
//! rank that knows the tensors' names, dtypes and shapes.
//!
//! The `safetensors` crate's own writer wants all values at once and makes a private temporary file
//! (mode 0600); the form is simple enough to lay out here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Error, TensorSpec};

/// Values begin at a multiple of this, as in files of the `safetensors` crate.
const HEADER_ALIGNMENT: usize = 8;

/// A safetensors file without its values.
#[derive(Debug)]
pub(super) struct TensorLayout {
    /// Its path in the checkpoint.
    pub(super) file: String,
    /// All that comes before the values: the header's length and the header.
    pub(super) head: Vec<u8>,
    /// Bytes of the whole file.
    pub(super) len_bytes: u64,
    /// By name: the tensor, and where in the file its values begin.
    tensors: BTreeMap<String, (TensorSpec, u64)>,
}

impl TensorLayout {
    /// Lays out the tensors for `file` in the order of [`in_file_order`], so that each is aligned
    /// to its element size and the same tensors always give the same file.
    pub(super) fn new(file: &str, specs: &[TensorSpec]) -> Result<Self, Error> {
        let refuse = |tensor: &str, reason: &str| Error::Record {
            file: file.to_string(),
            tensor: tensor.to_string(),
            reason: reason.to_string(),
        };
        let mut header = Map::new();
        let mut offset = 0;
        let mut starts = Vec::new();
        for spec in in_file_order(specs) {
            let end = offset + spec.len_bytes();
            let entry = json!({
                "dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [offset, end],
            });
            if header.insert(spec.name.clone(), entry).is_some() {
                return Err(refuse(&spec.name, "expected each name once, found it twice"));
            }
            starts.push((spec, offset));
            offset = end;
        }
        // Hugging Face's loader refuses files whose metadata does not name a framework.
        if header.insert("__metadata__".to_string(), json!({"format": "pt"})).is_some() {
            return Err(refuse("__metadata__", "the format keeps this name for itself"));
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
        let head = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
        let start = |offset: usize| (head.len() + offset) as u64;
        let tensors = starts
            .into_iter()
            .map(|(spec, offset)| (spec.name.clone(), (spec.clone(), start(offset))))
            .collect();
        let len_bytes = start(offset);
        Ok(Self { file: file.to_string(), head, len_bytes, tensors })
    }

    /// The tensor of a name, and where in the file its values begin.
    pub(super) fn find(&self, name: &str) -> Option<(&TensorSpec, u64)> {
        self.tensors.get(name).map(|(spec, start)| (spec, *start))
    }

    /// All names, ascending.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all values.
    pub(super) fn value_bytes(&self) -> u64 {
        self.len_bytes - self.head.len() as u64
    }
}

/// Widest dtype first and then by name.
pub(super) fn in_file_order(specs: &[TensorSpec]) -> Vec<&TensorSpec> {
    let mut ordered: Vec<_> = specs.iter().collect();
    ordered.sort_by_key(|spec| (std::cmp::Reverse(spec.dtype.size_bytes()), &spec.name));
    ordered
}
