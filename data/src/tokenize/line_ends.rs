//! The proof that a tokenizer never joins the end of a line with the line feed after it.
//!
//! A *border* is the place between an ASCII letter or digit and a line feed. Text may be cut at
//! borders if the pieces, encoded one by one, give the ids of the whole. That holds when
//!
//! 1. normalization is absent, or is NFC, which never composes across a line feed;
//! 2. pre-tokenization ends a word at each border, and what it does on one side does not depend
//!    on the other. The regular expressions below qualify: each of their alternatives that
//!    matches a letter or digit last stops before white space, none matches white space after
//!    one, they have no look-behind, and the only look-ahead, `(?!\S)`, applies behind a run of
//!    white space and so never to a word that ends at a border. A line feed after punctuation
//!    would not do: the expression of Llama 3 takes `,\n` as one word;
//! 3. no prefix space is added, since each piece would get one;
//! 4. no added token holds a line feed or strips the white space around it.
//!
//! Models encode each word by itself, so nothing else is asked of them. A tokenizer that this
//! module cannot vouch for is not refused: its text is encoded whole.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer};

/// Regular expressions of `Split` pre-tokenizers that end a word at each border: those of Llama 3
/// and of Qwen 2.
pub(super) const KNOWN_PATTERNS: [&str; 2] = [
    concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
];

/// What one pre-tokenizer does to a border.
enum Effect {
    /// It ends a word there.
    Splits,
    /// It leaves the border as it is, and acts on each side alone.
    Keeps,
    /// Not known.
    Unknown,
}

/// Whether the text of this tokenizer may be cut at borders.
pub(super) fn are_borders(tokenizer: &Tokenizer) -> bool {
    let normalizer_is_local =
        matches!(tokenizer.get_normalizer(), None | Some(NormalizerWrapper::NFC(_)));
    let is_local = |token: &AddedToken| {
        !token.content.contains('\n') && !token.lstrip && !token.rstrip && !token.single_word
    };
    normalizer_is_local
        && tokenizer.get_added_tokens_decoder().values().all(is_local)
        && tokenizer.get_pre_tokenizer().is_some_and(splits_at_borders)
}

fn splits_at_borders(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    let steps = match pre_tokenizer {
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref(),
        single => std::slice::from_ref(single),
    };
    let mut splits = false;
    for step in steps {
        match effect(step) {
            Effect::Splits => splits = true,
            Effect::Keeps => {}
            Effect::Unknown => return false,
        }
    }
    splits
}

fn effect(step: &PreTokenizerWrapper) -> Effect {
    match step {
        PreTokenizerWrapper::ByteLevel(byte_level) if byte_level.add_prefix_space => {
            Effect::Unknown
        }
        PreTokenizerWrapper::ByteLevel(byte_level) if byte_level.use_regex => Effect::Splits,
        PreTokenizerWrapper::ByteLevel(_) | PreTokenizerWrapper::Digits(_) => Effect::Keeps,
        PreTokenizerWrapper::Split(split) if is_known(split) => Effect::Splits,
        _ => Effect::Unknown,
    }
}

fn is_known(split: &Split) -> bool {
    KNOWN_PATTERNS.iter().any(|pattern| is_isolating(split, pattern))
}

/// Whether a `Split` makes each match of `pattern` a word of its own.
pub(super) fn is_isolating(split: &Split, pattern: &str) -> bool {
    matches!(&split.pattern, SplitPattern::Regex(found) if found == pattern)
        && matches!(split.behavior, SplitDelimiterBehavior::Isolated)
        && !split.invert
}
