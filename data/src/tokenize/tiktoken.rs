//! Ranks as tiktoken keeps them: a line for each token, its bytes in base64 and its id.
//!
//! The file holds neither the regular expression that cuts words nor the special tokens; both are
//! known for the encodings that are in use, which the number of ranks tells apart.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokenizers::utils::SysRegex;

use super::fast::FastBpe;
use super::merges::Merges;
use super::words::{Classes, WordPattern};
use crate::dataset::hexadecimal;
use crate::error::{Error, Result};

/// How an encoding cuts words.
#[derive(Clone, Copy)]
enum Cutting {
    Gpt2,
    Cl100k,
    O200k,
    Llama3,
    Qwen,
}

/// An encoding: number of ranks, how words are cut, special tokens.
type Encoding = (usize, Cutting, &'static [(&'static str, u32)]);

const KNOWN: [Encoding; 6] = [
    (50_256, Cutting::Gpt2, &[("<|endoftext|>", 50_256)]),
    (50_280, Cutting::Gpt2, &[("<|endoftext|>", 50_256)]),
    (
        100_256,
        Cutting::Cl100k,
        &[
            ("<|endoftext|>", 100_257),
            ("<|fim_prefix|>", 100_258),
            ("<|fim_middle|>", 100_259),
            ("<|fim_suffix|>", 100_260),
            ("<|endofprompt|>", 100_276),
        ],
    ),
    (128_000, Cutting::Llama3, &[("<|begin_of_text|>", 128_000), ("<|end_of_text|>", 128_001)]),
    (
        151_643,
        Cutting::Qwen,
        &[("<|endoftext|>", 151_643), ("<|im_start|>", 151_644), ("<|im_end|>", 151_645)],
    ),
    (199_998, Cutting::O200k, &[("<|endoftext|>", 199_999), ("<|endofprompt|>", 200_018)]),
];

const O200K_PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// A tokenizer of ranks.
#[derive(Clone, Debug)]
pub(super) struct Ranks {
    pub(super) bpe: FastBpe,
    /// The bytes of each id; `None` where there is no token.
    pub(super) tokens: Vec<Option<Box<[u8]>>>,
    pub(super) special: BTreeMap<String, u32>,
    /// SHA-256 of the file, in hexadecimal.
    pub(super) sha256: String,
}

impl Ranks {
    /// Reads a `.tiktoken` file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::TokenizerLoad`] with the line if it is
    /// malformed, if a byte has no rank, or if its number of ranks is of no known encoding.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read the ranks", path))?;
        Self::parse(&text).map_err(|cause| Error::TokenizerLoad { path: path.to_owned(), cause })
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut ranks: BTreeMap<Box<[u8]>, u32> = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let entry = line.split_once(' ').and_then(|(token, rank)| {
                Some((decode_base64(token)?, rank.trim_end().parse().ok()?))
            });
            let (token, rank) =
                entry.ok_or_else(|| format!("line {number} is not `BASE64 RANK`: `{line}`"))?;
            if ranks.insert(token, rank).is_some() {
                return Err(format!("line {number} gives a second rank to a token"));
            }
        }
        let found = KNOWN.iter().find(|(num_ranks, ..)| *num_ranks == ranks.len());
        let Some((_, cutting, special)) = found else {
            let known: Vec<String> = KNOWN.iter().map(|(count, ..)| count.to_string()).collect();
            return Err(format!(
                "it has {} ranks; known encodings have {}, and for others the way to cut words is \
                 not known, so use its tokenizer.json",
                ranks.len(),
                known.join(", ")
            ));
        };
        let sha256 = hexadecimal(&Sha256::digest(text));
        Self::assemble(ranks, cutting.pattern()?, (special, sha256))
    }

    fn assemble(
        ranks: BTreeMap<Box<[u8]>, u32>,
        words: WordPattern,
        (special, sha256): (&[(&str, u32)], String),
    ) -> std::result::Result<Self, String> {
        let special: BTreeMap<String, u32> =
            special.iter().map(|&(token, id)| (token.to_owned(), id)).collect();
        let max_id = ranks.values().chain(special.values()).max().copied().unwrap_or(0);
        // Ids are ranks, which count the tokens, so this bounds what a damaged file can ask for.
        if max_id as usize > 2 * ranks.len() + 1024 {
            return Err(format!("rank {max_id} is far beyond its {} tokens", ranks.len()));
        }
        let mut byte_ids = [0; 256];
        for (byte, id) in (0..=255_u8).zip(&mut byte_ids) {
            let rank = ranks.get([byte].as_slice());
            *id = *rank.ok_or_else(|| format!("the byte {byte:#04x} has no rank"))?;
        }
        let mut pairs = Vec::new();
        let mut tokens: Vec<Option<Box<[u8]>>> = vec![None; max_id as usize + 1];
        for (token, &rank) in &ranks {
            for cut in 1..token.len() {
                let halves = [&token[..cut], &token[cut..]].map(|half| ranks.get(half));
                if let [Some(&left), Some(&right)] = halves {
                    pairs.push((left, right, rank, rank));
                }
            }
            tokens[rank as usize] = Some(token.clone());
        }
        for (token, &id) in &special {
            tokens[id as usize] = Some(token.as_bytes().into());
        }
        let merges = Merges::new(byte_ids, &pairs, Some(ranks));
        Ok(Self { bpe: FastBpe::new(merges, words), tokens, special, sha256 })
    }
}

impl Cutting {
    fn pattern(self) -> std::result::Result<WordPattern, String> {
        let llama = |max_digits, joins_last_space| WordPattern::Llama {
            classes: Classes::new(),
            max_digits,
            joins_last_space,
        };
        Ok(match self {
            Self::Gpt2 => WordPattern::Gpt2(Classes::new()),
            Self::Cl100k => llama(3, true),
            Self::Llama3 => llama(3, false),
            Self::Qwen => llama(1, false),
            Self::O200k => {
                let regex = SysRegex::new(O200K_PATTERN).map_err(|cause| cause.to_string())?;
                WordPattern::Regex(Arc::new(regex))
            }
        })
    }
}

/// Bytes of standard base64 with padding (RFC 4648, section 4); `None` if it is malformed.
fn decode_base64(text: &str) -> Option<Box<[u8]>> {
    let value = |symbol: u8| match symbol {
        b'A'..=b'Z' => Some(symbol - b'A'),
        b'a'..=b'z' => Some(symbol - b'a' + 26),
        b'0'..=b'9' => Some(symbol - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 || text.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for &symbol in group {
            bits = bits << 6 | u32::from(value(symbol)?);
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes.into())
}
