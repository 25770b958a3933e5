//! Text to token ids and back, by raw bytes, a Hugging Face tokenizer, or tiktoken ranks.

mod encoder;
mod fast;
mod line_ends;
mod merges;
#[cfg(test)]
pub(crate) mod tests;
mod tiktoken;
mod train;
mod words;

use std::path::Path;

use sha2::{Digest, Sha256};

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;

pub(crate) use encoder::Encoder;
use fast::{FastBpe, byte_symbols};
use tiktoken::Ranks;
pub use train::{TrainOptions, train_tokenizer};

use crate::dataset::hexadecimal;
use crate::error::{Error, Result};

const TOKENIZER_JSON: &str = "tokenizer.json";
const VOCAB_JSON: &str = "vocab.json";
const MERGES_TXT: &str = "merges.txt";
const TIKTOKEN_ENDING: &str = "tiktoken";
const BYTES_VOCAB_SIZE: u32 = 256;

/// A way to turn text into token ids. No special tokens (BOS, EOS) are added.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// A byte is its own id.
    Bytes,
    Subword(Box<Subword>),
    Ranks(Box<RankTokenizer>),
}

#[derive(Clone, Debug)]
struct Subword {
    inner: tokenizers::Tokenizer,
    /// The same by this room's own means, where they are known to give the same ids.
    fast: Option<FastBpe>,
    description: String,
    vocab_size: u32,
}

#[derive(Clone, Debug)]
struct RankTokenizer {
    ranks: Ranks,
    description: String,
}

/// Where a text may be cut so that the parts, encoded one by one, give the ids of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunking {
    /// Between any two bytes.
    AnyByte,
    /// Between an ASCII letter or digit and a line feed.
    LineEnds,
    /// Nowhere that could be proved.
    Whole,
}

impl Tokenizer {
    /// The tokenizer of raw bytes: ids 0 to 255, any input, nothing to load.
    pub fn bytes() -> Self {
        Self { kind: Kind::Bytes }
    }

    /// The tokenizer that a configuration names: `"bytes"`, the path of a `tokenizer.json` or of
    /// tiktoken ranks (`.tiktoken`), or a folder that holds a `tokenizer.json` (taken first) or a
    /// GPT-2 style `vocab.json` and `merges.txt`. Truncation and padding in a `tokenizer.json` are switched off, since both
    /// would change the text.
    ///
    /// # Errors
    /// [`Error::TokenizerNotFound`] with the paths looked for; [`Error::TokenizerLoad`] if a file
    /// is not what its name says, or gives random ids (BPE dropout).
    pub fn from_spec(spec: &str) -> Result<Self> {
        if spec == "bytes" {
            return Ok(Self::bytes());
        }
        let path = Path::new(spec);
        if path.is_file() && path.extension().is_some_and(|ending| ending == TIKTOKEN_ENDING) {
            let ranks = Ranks::read(path)?;
            let (size, path) = (ranks.tokens.len(), path.display());
            let description = format!("tiktoken ranks `{path}` (vocab_size {size})");
            let kind = Kind::Ranks(Box::new(RankTokenizer { ranks, description }));
            return Ok(Self { kind });
        }
        if path.is_file() {
            return Self::from_tokenizer_json(path);
        }
        let [json, vocab, merges] = [TOKENIZER_JSON, VOCAB_JSON, MERGES_TXT].map(|x| path.join(x));
        if json.is_file() {
            return Self::from_tokenizer_json(&json);
        }
        if vocab.is_file() && merges.is_file() {
            return Self::from_vocab_and_merges(path, &vocab, &merges);
        }
        let looked_for = if path.is_dir() {
            let (json, vocab, merges) = (json.display(), vocab.display(), merges.display());
            format!("`{json}`, and `{vocab}` with `{merges}`")
        } else {
            format!("a file or folder `{spec}`")
        };
        Err(Error::TokenizerNotFound { spec: spec.to_owned(), looked_for })
    }

    fn from_tokenizer_json(path: &Path) -> Result<Self> {
        let refuse = |cause| Error::TokenizerLoad { path: path.to_owned(), cause };
        let bytes = std::fs::read(path).map_err(Error::io("read the tokenizer", path))?;
        // Read as JSON first: the crate panics at bad JSON in the middle of a decoder.
        let json = serde_json::from_slice(&bytes).map(|_: serde_json::Value| ());
        json.map_err(|cause| refuse(format!("it is not a valid tokenizer.json: {cause}")))?;
        let inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|cause| refuse(format!("it is not a valid tokenizer.json: {cause}")))?;
        if let ModelWrapper::BPE(model) = inner.get_model()
            && let Some(dropout) = model.dropout.filter(|&dropout| dropout > 0.0)
        {
            let cause = format!("model.dropout is {dropout}, which makes ids random; set it to 0");
            return Err(refuse(cause));
        }
        Self::from_subword(inner, path, "Hugging Face tokenizer")
    }

    /// Builds what GPT-2 uses (Radford et al. 2019, section 2.2): byte-level BPE after the split
    /// of GPT-2's regular expression, without an added leading space.
    fn from_vocab_and_merges(folder: &Path, vocab: &Path, merges: &Path) -> Result<Self> {
        let refuse = |cause| Error::TokenizerLoad { path: folder.to_owned(), cause };
        let model = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy())
            .build()
            .map_err(|cause| refuse(format!("{VOCAB_JSON} or {MERGES_TXT}: {cause}")))?;
        let byte_level = ByteLevel::new(false, false, true);
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
        // The crate drops what it has no id for without a word, so each byte must have one.
        let lacks_id = |symbol: &char| inner.token_to_id(&symbol.to_string()).is_none();
        if let Some(symbol) = ByteLevel::alphabet().into_iter().filter(lacks_id).min() {
            let cause = format!(
                "{VOCAB_JSON} has no id for the byte symbol {symbol:?}; \
                 a byte-level vocabulary needs all 256"
            );
            return Err(refuse(cause));
        }
        Self::from_subword(inner, folder, "byte-level BPE")
    }

    fn from_subword(mut inner: tokenizers::Tokenizer, path: &Path, name: &str) -> Result<Self> {
        let refuse = |cause: String| Error::TokenizerLoad { path: path.to_owned(), cause };
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|cause| refuse(cause.to_string()))?;
        // Ids may have gaps, so the number of tokens is not a bound of the ids.
        let max_id = inner.get_vocab(true).into_values().max();
        let vocab_size = max_id
            .and_then(|id| id.checked_add(1))
            .ok_or_else(|| refuse("its vocabulary is empty, or an id is 2^32 - 1".to_owned()))?;
        let description = format!("{name} `{}` (vocab_size {vocab_size})", path.display());
        let fast = FastBpe::of(&inner);
        let subword = Subword { inner, fast, description, vocab_size };
        Ok(Self { kind: Kind::Subword(Box::new(subword)) })
    }

    /// Every id is below this: the largest id + 1, added tokens included.
    pub fn vocab_size(&self) -> u32 {
        match &self.kind {
            Kind::Bytes => BYTES_VOCAB_SIZE,
            Kind::Subword(subword) => subword.vocab_size,
            Kind::Ranks(tokenizer) => tokenizer.ranks.tokens.len() as u32,
        }
    }

    /// One line for plans and messages: the kind, where it was read from, the vocabulary size.
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Bytes => format!("bytes (vocab_size {BYTES_VOCAB_SIZE})"),
            Kind::Subword(subword) => subword.description.clone(),
            Kind::Ranks(tokenizer) => tokenizer.description.clone(),
        }
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if a Hugging Face tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        Encoder::for_little_text(self).encode(text, &mut ids)?;
        Ok(ids)
    }

    /// The ids of bytes that need not be text for the tokenizer of bytes, and must be UTF-8 for
    /// the others.
    ///
    /// # Errors
    /// [`Error::NotUtf8`] with the offset of the first bad byte, and those of
    /// [`Tokenizer::encode`].
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(bytes.iter().copied().map(u32::from).collect()),
            Kind::Subword(_) | Kind::Ranks(_) => {
                self.encode(std::str::from_utf8(bytes).map_err(|bad| Error::NotUtf8 {
                    origin: "text".to_owned(),
                    byte: bad.valid_up_to() as u64,
                })?)
            }
        }
    }

    /// The text of ids. Bytes that are not UTF-8, such as half of a character, become U+FFFD.
    ///
    /// # Errors
    /// [`Error::UnknownTokenId`] for an id that is not in the vocabulary, [`Error::Tokenizer`] if
    /// a Hugging Face tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let unknown = |position: usize| {
            let (id, tokenizer) = (ids[position], self.describe());
            Err(Error::UnknownTokenId { position, id, tokenizer })
        };
        match &self.kind {
            Kind::Bytes => {
                if let Some(position) = ids.iter().position(|&id| id >= BYTES_VOCAB_SIZE) {
                    return unknown(position);
                }
                let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Kind::Subword(subword) => {
                // The crate would leave such an id out of the text without a word.
                let is_unknown = |&id: &u32| subword.inner.id_to_token(id).is_none();
                if let Some(position) = ids.iter().position(is_unknown) {
                    return unknown(position);
                }
                subword.inner.decode(ids, false).map_err(|cause| self.failed(cause))
            }
            Kind::Ranks(tokenizer) => {
                let mut bytes = Vec::new();
                for (position, &id) in ids.iter().enumerate() {
                    match tokenizer.ranks.tokens.get(id as usize) {
                        Some(Some(token)) => bytes.extend_from_slice(token),
                        _ => return unknown(position),
                    }
                }
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }

    /// Bytes of the text of ids: what a loss is divided by to compare tokenizers.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn num_bytes(&self, ids: &[u32]) -> Result<usize> {
        match &self.kind {
            Kind::Bytes => Ok(ids.len()),
            Kind::Subword(_) | Kind::Ranks(_) => Ok(self.decode(ids)?.len()),
        }
    }

    /// The id of a token by its name, such as `<|endoftext|>`; `None` if there is none.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Bytes => None,
            Kind::Subword(subword) => subword.inner.token_to_id(token),
            Kind::Ranks(tokenizer) => tokenizer.ranks.special.get(token).copied(),
        }
    }

    /// SHA-256, in hexadecimal, of all that decides the ids of a text: vocabulary, merges, how
    /// text is normalized and cut. The path it was read from is no part of it.
    pub fn fingerprint(&self) -> String {
        let content = match &self.kind {
            Kind::Bytes => "bytes".to_owned(),
            Kind::Subword(subword) => {
                serde_json::to_string(&subword.inner).expect("a tokenizer has a JSON form")
            }
            Kind::Ranks(tokenizer) => format!("tiktoken {}", tokenizer.ranks.sha256),
        };
        hexadecimal(&Sha256::digest(content))
    }

    /// SHA-256, in hexadecimal, of the meaning of ids alone: each id with its bytes. Two files of
    /// one vocabulary agree here, as GPT-2's `vocab.json` and its tiktoken ranks do.
    pub fn vocabulary_fingerprint(&self) -> String {
        let mut tokens: Vec<(u32, Vec<u8>)> = match &self.kind {
            Kind::Bytes => (0..=255).map(|byte| (u32::from(byte), vec![byte])).collect(),
            Kind::Subword(subword) => {
                let symbols = byte_symbols();
                let bytes = |token: &str| {
                    let bytes = token.chars().map(|symbol| symbols.get(&symbol).copied());
                    bytes.collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
                };
                let vocabulary = subword.inner.get_vocab(true);
                vocabulary.iter().map(|(token, &id)| (id, bytes(token))).collect()
            }
            Kind::Ranks(tokenizer) => {
                let tokens = (0..).zip(&tokenizer.ranks.tokens);
                tokens.filter_map(|(id, token)| Some((id, token.as_ref()?.to_vec()))).collect()
            }
        };
        tokens.sort_unstable();
        let mut hash = Sha256::new();
        for (id, bytes) in tokens {
            hash.update(id.to_le_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        hexadecimal(&hash.finalize())
    }

    /// Whether any bytes are text to it.
    pub(crate) fn takes_any_bytes(&self) -> bool {
        matches!(self.kind, Kind::Bytes)
    }

    pub(crate) fn chunking(&self) -> Chunking {
        match &self.kind {
            Kind::Bytes => Chunking::AnyByte,
            Kind::Subword(subword) if line_ends::are_borders(&subword.inner) => Chunking::LineEnds,
            Kind::Subword(_) => Chunking::Whole,
            // All the expressions of known ranks end a word there, as `line_ends` asks.
            Kind::Ranks(_) => Chunking::LineEnds,
        }
    }

    fn failed(&self, cause: tokenizers::Error) -> Error {
        Error::Tokenizer { tokenizer: self.describe(), cause: cause.to_string() }
    }
}
