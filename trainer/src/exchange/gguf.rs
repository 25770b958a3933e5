//! The GGUF file: metadata by key, then tensors by name, as llama.cpp writes them.
//!
//! Version 2 and 3, little-endian: magic `GGUF`, version (u32), number of tensors and of keys
//! (u64), the keys with typed values, the tensors' names, dims, types and offsets, and from the
//! next multiple of `general.alignment` on the tensors. Strings carry their length in bytes (u64).

mod blocks;
mod cursor;
mod llama;
mod tokenizer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::Error;
use crate::checkpoint::map_file;
pub use blocks::BlockType;
use cursor::Cursor;
pub use cursor::Value;
pub(super) use llama::LlamaGguf;

const MAGIC: &[u8] = b"GGUF";
/// The versions whose numbers are 64 bits wide.
const VERSIONS: [u32; 2] = [2, 3];
/// Bytes that tensors are aligned to, unless the file says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The most dims of a tensor in GGML.
const MAX_DIMS: u32 = 4;

/// An open GGUF file. Values stay on the disk until they are asked for.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, GgufTensor>,
}

/// One tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Length of each dim, slowest first; the file has them the other way round.
    pub shape: Vec<usize>,
    /// How values are stored.
    pub block_type: BlockType,
    /// Where in the file.
    range: Range<usize>,
}

impl Gguf {
    /// Opens a file and reads its header, every number of which is held against the file's size.
    ///
    /// # Errors
    /// [`Error::Gguf`] with the byte at which the file is not as it should be, and
    /// [`crate::checkpoint::Error::Io`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let map = map_file(path)?;
        let (metadata, tensors) = read_header(&mut Cursor::new(path, &map))?;
        Ok(Self { path: path.to_owned(), map, metadata, tensors })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A value of the metadata.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The text of a value; `None` if it is another type or not there.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        let Value::Text(range) = self.value(key)? else { return None };
        std::str::from_utf8(&self.map[range.clone()]).ok()
    }

    /// The texts of an array; `None` if it is another type, not there, or not UTF-8.
    #[must_use]
    pub fn texts(&self, key: &str) -> Option<Vec<&str>> {
        let Value::Texts { count, range } = self.value(key)? else { return None };
        let mut cursor = Cursor::within(&self.path, &self.map, range.clone());
        let text = |_| std::str::from_utf8(&self.map[cursor.text("a text").ok()?]).ok();
        (0..*count).map(text).collect()
    }

    /// The integers of an array of 32-bit ones; `None` if it is another type or not there.
    #[must_use]
    pub fn integers(&self, key: &str) -> Option<Vec<i32>> {
        let Value::Integers(range) = self.value(key)? else { return None };
        let (integers, _) = self.map[range.clone()].as_chunks();
        Some(integers.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect())
    }

    /// All tensors, by ascending name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &GgufTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The values of a tensor in f32, row-major; `None` if there is none of this name.
    #[must_use]
    pub fn values(&self, name: &str) -> Option<Vec<f32>> {
        let tensor = self.tensors.get(name)?;
        Some(tensor.block_type.decode(&self.map[tensor.range.clone()]))
    }
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, GgufTensor>);

fn read_header(cursor: &mut Cursor<'_>) -> Result<Header, Error> {
    if cursor.take(4, "the magic")? != MAGIC {
        return Err(cursor.refuse(0, "it does not begin with GGUF"));
    }
    let version = cursor.u32("the version")?;
    if !VERSIONS.contains(&version) {
        return Err(cursor.refuse(4, format!("version {version}, expected 2 or 3")));
    }
    let num_tensors = cursor.u64("the number of tensors")?;
    let num_keys = cursor.u64("the number of keys")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..num_keys {
        let key = cursor.name("a key")?;
        let value = cursor.value(&key)?;
        if let Some(_before) = metadata.insert(key.clone(), value) {
            return Err(cursor.refuse(cursor.position(), format!("key {key} is there twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Unsigned(alignment)) if alignment.is_power_of_two() => *alignment,
        Some(other) => {
            let reason = format!("general.alignment is {other:?}, expected a power of two");
            return Err(cursor.refuse(cursor.position(), reason));
        }
    };
    let mut infos = BTreeMap::new();
    for _ in 0..num_tensors {
        let (name, info) = tensor_info(cursor)?;
        if infos.contains_key(&name) {
            return Err(cursor.refuse(info.position, format!("tensor {name} is there twice")));
        }
        infos.insert(name, info);
    }
    let start = (cursor.position() as u64).checked_next_multiple_of(alignment);
    let placed = infos.into_iter().map(|(name, info)| {
        let range = info.range(start, cursor.len());
        let range = range.ok_or_else(|| {
            cursor.refuse(info.position, format!("tensor {name} does not lie within the file"))
        })?;
        Ok((name, GgufTensor { shape: info.shape, block_type: info.block_type, range }))
    });
    let tensors = placed.collect::<Result<_, Error>>()?;
    Ok((metadata, tensors))
}

/// A tensor's entry in the header.
struct Info {
    shape: Vec<usize>,
    block_type: BlockType,
    /// Bytes of its values.
    len_bytes: usize,
    /// Counted from the first tensor.
    offset: u64,
    /// Where the entry is.
    position: usize,
}

impl Info {
    /// Where the values are in the file; `None` if that is not within it.
    fn range(&self, start: Option<u64>, file_bytes: usize) -> Option<Range<usize>> {
        let first = usize::try_from(start?.checked_add(self.offset)?).ok()?;
        let end = first.checked_add(self.len_bytes)?;
        (end <= file_bytes).then_some(first..end)
    }
}

fn tensor_info(cursor: &mut Cursor<'_>) -> Result<(String, Info), Error> {
    let position = cursor.position();
    let name = cursor.name("a tensor's name")?;
    let num_dims = cursor.u32("the number of dims")?;
    if !(1..=MAX_DIMS).contains(&num_dims) {
        let reason = format!("tensor {name} has {num_dims} dims, expected 1 to {MAX_DIMS}");
        return Err(cursor.refuse(position, reason));
    }
    let mut shape = Vec::new();
    for _ in 0..num_dims {
        let size = cursor.u64("a dim")?;
        let size = usize::try_from(size).ok().filter(|size| *size > 0);
        shape.push(size.ok_or_else(|| {
            cursor.refuse(position, format!("tensor {name} has a dim that is 0 or too large"))
        })?);
    }
    let code = cursor.u32("a type")?;
    let offset = cursor.u64("an offset")?;
    let block_type = BlockType::of_code(code).ok_or_else(|| {
        let known = "F32, F16, BF16, Q4_0, Q4_1 or Q8_0";
        cursor.refuse(position, format!("tensor {name} has type {code}, expected {known}"))
    })?;
    let len_bytes = block_type.len_bytes(&shape).ok_or_else(|| {
        cursor.refuse(position, format!("tensor {name} of {shape:?} is no whole number of blocks"))
    })?;
    // The file begins with the fastest dim.
    shape.reverse();
    Ok((name, Info { shape, block_type, len_bytes, offset, position }))
}
