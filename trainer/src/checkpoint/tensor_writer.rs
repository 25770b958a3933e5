//! The safetensors form, written as a stream: a header, then each tensor's bytes as they are.
//!
//! The `safetensors` crate's own writer makes a private temporary file (mode 0600) and leaves no
//! place for hashing what passes; the form is simple enough to write here.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::{Error, TensorRecord};

/// Values begin at a multiple of this, as in files of the `safetensors` crate.
const HEADER_ALIGNMENT: usize = 8;

/// A safetensors file ready to be written: its header is known, its values are borrowed.
#[derive(Debug)]
pub(super) struct TensorStream<'a> {
    header: Vec<u8>,
    tensors: Vec<&'a TensorRecord<'a>>,
}

impl<'a> TensorStream<'a> {
    /// Lays out the tensors for `file`, widest dtype first and then by name, so that each is
    /// aligned to its element size and the same tensors always give the same file.
    pub(super) fn new(file: &str, records: &'a [TensorRecord<'a>]) -> Result<Self, Error> {
        let mut tensors: Vec<_> = records.iter().collect();
        tensors.sort_by_key(|tensor| {
            (std::cmp::Reverse(tensor.spec.dtype.size_bytes()), &tensor.spec.name)
        });
        let mut header = Map::new();
        let mut offset = 0;
        for TensorRecord { spec, bytes } in &tensors {
            let refuse = |reason: String| Error::Record {
                file: file.to_string(),
                tensor: spec.name.clone(),
                reason,
            };
            if bytes.len() != spec.len_bytes() {
                let (found, expected) = (bytes.len(), spec.len_bytes());
                return Err(refuse(format!("{spec} takes {expected} bytes, found {found}")));
            }
            let end = offset + bytes.len();
            let entry = json!({
                "dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [offset, end],
            });
            if header.insert(spec.name.clone(), entry).is_some() {
                return Err(refuse("expected each name once, found it twice".to_string()));
            }
            offset = end;
        }
        // Hugging Face's loader refuses files whose metadata does not name a framework.
        if header.insert("__metadata__".to_string(), json!({"format": "pt"})).is_some() {
            return Err(Error::Record {
                file: file.to_string(),
                tensor: "__metadata__".to_string(),
                reason: "the format keeps this name for itself".to_string(),
            });
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
        Ok(Self { header, tensors })
    }

    /// Bytes of the whole file.
    pub(super) fn len_bytes(&self) -> u64 {
        let values: usize = self.tensors.iter().map(|tensor| tensor.bytes.len()).sum();
        (size_of::<u64>() + self.header.len() + values) as u64
    }

    /// Writes the file.
    pub(super) fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.header.len() as u64).to_le_bytes())?;
        out.write_all(&self.header)?;
        for tensor in &self.tensors {
            out.write_all(&tensor.bytes)?;
        }
        Ok(())
    }
}
