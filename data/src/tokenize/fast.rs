//! Byte-level BPE without the `tokenizers` crate: the same ids, several times as fast.
//!
//! Text is cut into words by a scan, each word is looked up in a cache of words seen, and merged
//! if it is not there. The tests compare the ids with the crate's. A tokenizer that this module
//! cannot vouch for, or a text in which an added token or a character that normalization might
//! change occurs, is left to the crate.

use std::collections::BTreeMap;

use aho_corasick::AhoCorasick;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{NormalizerWrapper, Tokenizer};

use super::line_ends::{KNOWN_PATTERNS, is_isolating};
use super::merges::{Merges, Work};
use super::words::{Classes, WordPattern};

/// Every character below this one is left as it is by NFC, whatever stands beside it (Unicode
/// Standard Annex 15: the first with NFC_Quick_Check other than Yes is U+0300).
const FIRST_NFC_CHARACTER: char = '\u{300}';

/// Words of up to this many bytes are cached, with up to [`MAX_CACHED_IDS`] ids.
const MAX_CACHED_BYTES: usize = 15;
const MAX_CACHED_IDS: usize = 3;
/// Slots of a cache, 32 bytes each: 2 MiB, near a core's share of the fast memory.
const CACHE_SLOTS: usize = 1 << 16;

/// A byte-level BPE that this module can do by itself.
#[derive(Clone, Debug)]
pub(super) struct FastBpe {
    merges: Merges,
    words: WordPattern,
    /// Finds added tokens, which the crate takes out of a text before all else.
    added_tokens: Option<AhoCorasick>,
    normalizes: bool,
}

impl FastBpe {
    /// From merges and a way to cut words, with nothing else to mind.
    pub(super) fn new(merges: Merges, words: WordPattern) -> Self {
        Self { merges, words, added_tokens: None, normalizes: false }
    }

    /// What the crate's tokenizer does, if it is a byte-level BPE of a known shape.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let normalizes = match tokenizer.get_normalizer() {
            None => false,
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(_) => return None,
        };
        let words = word_pattern(tokenizer.get_pre_tokenizer()?)?;
        let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
        let added = tokenizer.get_added_tokens_decoder();
        let contents: Vec<&str> = added.values().map(|token| token.content.as_str()).collect();
        let added_tokens =
            if contents.is_empty() { None } else { Some(AhoCorasick::new(contents).ok()?) };
        Some(Self { merges: merges_of(model)?, words, added_tokens, normalizes })
    }

    /// Appends the ids of `text`; false, with nothing appended, if the crate must do it.
    pub(super) fn encode(&self, text: &str, cache: &mut WordCache, ids: &mut Vec<u32>) -> bool {
        if self.added_tokens.as_ref().is_some_and(|added| added.is_match(text)) {
            return false;
        }
        if self.normalizes && !text.is_ascii() && text.chars().any(|c| c >= FIRST_NFC_CHARACTER) {
            return false;
        }
        let WordCache { slots, work } = cache;
        self.words.split(text, |word| {
            if word.len() > MAX_CACHED_BYTES || slots.is_empty() {
                return self.merges.encode(word.as_bytes(), work, ids);
            }
            let key = packed(word.as_bytes());
            let slot = &mut slots[slot_of(key)];
            if slot.key == key {
                return ids.extend_from_slice(&slot.ids[..slot.num_ids as usize]);
            }
            let start = ids.len();
            self.merges.encode(word.as_bytes(), work, ids);
            let new = &ids[start..];
            if new.len() <= MAX_CACHED_IDS {
                slot.key = key;
                slot.num_ids = new.len() as u32;
                slot.ids[..new.len()].copy_from_slice(new);
            }
        });
        true
    }
}

/// Words seen and their ids: a word has one slot, where the newest one stands.
#[derive(Debug, Default)]
pub(super) struct WordCache {
    slots: Vec<Slot>,
    work: Work,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// [`packed`] word; 0, which no word packs to, if the slot is empty.
    key: u128,
    ids: [u32; MAX_CACHED_IDS],
    num_ids: u32,
}

impl WordCache {
    /// A cache for much text. The default one has no slots: for little text it would cost more
    /// than it saves.
    pub(super) fn new() -> Self {
        let slots = vec![Slot { key: 0, ids: [0; MAX_CACHED_IDS], num_ids: 0 }; CACHE_SLOTS];
        Self { slots, work: Work::default() }
    }
}

/// A word of 1 to 15 bytes and its length as one number.
#[inline]
fn packed(word: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    bytes[..word.len()].copy_from_slice(word);
    bytes[15] = word.len() as u8;
    u128::from_le_bytes(bytes)
}

#[inline]
fn slot_of(key: u128) -> usize {
    let folded = (key as u64) ^ ((key >> 64) as u64).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> (64 - CACHE_SLOTS.ilog2())) as usize
}

/// GPT-2's `ByteLevel`, or a known `Split` followed by a `ByteLevel` that does not split.
fn word_pattern(pre_tokenizer: &PreTokenizerWrapper) -> Option<WordPattern> {
    let steps = match pre_tokenizer {
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref(),
        single => std::slice::from_ref(single),
    };
    match steps {
        [PreTokenizerWrapper::ByteLevel(step)] if step.use_regex && !step.add_prefix_space => {
            Some(WordPattern::Gpt2(Classes::new()))
        }
        [PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(step)]
            if !step.use_regex && !step.add_prefix_space =>
        {
            let known = KNOWN_PATTERNS.iter().position(|pattern| is_isolating(split, pattern))?;
            // The first is Llama 3's, the second Qwen 2's.
            let max_digits = [3, 1][known];
            Some(WordPattern::Llama {
                classes: Classes::new(),
                max_digits,
                joins_last_space: false,
            })
        }
        _ => None,
    }
}

fn merges_of(model: &BPE) -> Option<Merges> {
    let is_plain = model.dropout.is_none_or(|dropout| dropout == 0.0)
        && model.continuing_subword_prefix.as_ref().is_none_or(String::is_empty)
        && model.end_of_word_suffix.as_ref().is_none_or(String::is_empty)
        && !model.byte_fallback;
    if !is_plain {
        return None;
    }
    let symbols: BTreeMap<char, u8> = byte_symbols();
    let vocabulary = model.get_vocab();
    let mut byte_ids = [u32::MAX; 256];
    for (symbol, byte) in &symbols {
        byte_ids[usize::from(*byte)] = *vocabulary.get(&symbol.to_string())?;
    }
    // The crate does not show its merges but in the form in which it saves them.
    let saved = serde_json::to_value(model).ok()?;
    let mut pairs = Vec::new();
    for (rank, pair) in saved.get("merges")?.as_array()?.iter().enumerate() {
        let [left, right] = [pair.get(0)?.as_str()?, pair.get(1)?.as_str()?];
        let merged = *vocabulary.get(&format!("{left}{right}"))?;
        pairs.push((*vocabulary.get(left)?, *vocabulary.get(right)?, rank as u32, merged));
    }
    let whole = model.ignore_merges.then(|| {
        let bytes_of = |token: &str| -> Option<Box<[u8]>> {
            token.chars().map(|symbol| symbols.get(&symbol).copied()).collect()
        };
        vocabulary.iter().filter_map(|(token, &id)| Some((bytes_of(token)?, id))).collect()
    });
    Some(Merges::new(byte_ids, &pairs, whole))
}

/// The characters that stand for bytes in byte-level vocabularies (Radford et al. 2019, released
/// code): printable Latin-1 for itself, the rest from U+0100 on in order.
pub(super) fn byte_symbols() -> BTreeMap<char, u8> {
    let is_itself = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let (own, others): (Vec<u8>, Vec<u8>) = (0..=255).partition(|&byte| is_itself(byte));
    let mut symbols: BTreeMap<char, u8> =
        own.into_iter().map(|byte| (char::from(byte), byte)).collect();
    symbols.extend(('\u{100}'..).zip(others));
    debug_assert_eq!(symbols.len(), ByteLevel::alphabet().len());
    symbols
}
