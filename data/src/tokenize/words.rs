//! Text to the words that are merged one by one: the regular expressions of GPT-2 and of Llama 3
//! and its kin, written out as a scan, and others by a regular expression.
//!
//! The character classes are those of the regular-expression crate that the `tokenizers` crate
//! uses, so both agree on every character.

use std::sync::Arc;

use regex_syntax::hir::{Class, HirKind};
use tokenizers::utils::SysRegex;

/// How text is cut into words.
#[derive(Clone, Debug)]
pub(super) enum WordPattern {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2(Classes),
    /// The expressions of cl100k, Llama 3 and Qwen 2; see [`super::line_ends::KNOWN_PATTERNS`].
    Llama {
        classes: Classes,
        /// Longest run of digits in a word.
        max_digits: usize,
        /// Whether white space at the end of the text is one word whatever it holds, as `\s++$`
        /// in cl100k has it.
        joins_last_space: bool,
    },
    /// Any expression whose matches cover the text.
    Regex(Arc<SysRegex>),
}

impl WordPattern {
    /// Calls `word` with the words of `text` in order; together they are the text.
    pub(super) fn split<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) {
        let next: &dyn Fn(usize) -> usize = match self {
            Self::Gpt2(classes) => &|at| classes.gpt2_end(text, at),
            Self::Llama { classes, max_digits, joins_last_space } => {
                &|at| classes.llama_end(text, at, (*max_digits, *joins_last_space))
            }
            Self::Regex(regex) => {
                regex.find_iter(text).for_each(|(start, end)| word(&text[start..end]));
                return;
            }
        };
        let mut start = 0;
        while start < text.len() {
            let end = next(start);
            word(&text[start..end]);
            start = end;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum CharClass {
    Other,
    Letter,
    Number,
    Space,
}

const CLASSES: [CharClass; 4] =
    [CharClass::Other, CharClass::Letter, CharClass::Number, CharClass::Space];

/// The class of every character: two bits each, shared by clones.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    /// One byte for each ASCII character, which most of them are.
    ascii: [CharClass; 128],
    all: Arc<[u8]>,
}

impl Classes {
    pub(super) fn new() -> Self {
        let mut all = vec![0_u8; (char::MAX as usize + 1) / 4];
        for (pattern, class) in [
            (r"\p{L}", CharClass::Letter),
            (r"\p{N}", CharClass::Number),
            (r"\s", CharClass::Space),
        ] {
            let hir = regex_syntax::parse(pattern).expect("the pattern is a constant");
            let HirKind::Class(Class::Unicode(ranges)) = hir.kind() else {
                unreachable!("{pattern} is a class of characters");
            };
            for range in ranges.ranges() {
                for point in u32::from(range.start())..=u32::from(range.end()) {
                    all[point as usize / 4] |= (class as u8) << (2 * (point % 4));
                }
            }
        }
        let class_of = |point: usize| CLASSES[usize::from(all[point / 4] >> (2 * (point % 4)) & 3)];
        Self { ascii: std::array::from_fn(class_of), all: all.into() }
    }

    /// Class and length in bytes of the character at byte `at`; `None` at the end.
    #[inline]
    fn at(&self, text: &str, at: usize) -> Option<(CharClass, usize)> {
        let byte = *text.as_bytes().get(at)?;
        if byte < 128 {
            return Some((self.ascii[usize::from(byte)], 1));
        }
        let character = text[at..].chars().next()?;
        let point = character as usize;
        let class = CLASSES[usize::from(self.all[point / 4] >> (2 * (point % 4)) & 3)];
        Some((class, character.len_utf8()))
    }

    /// Where the run of characters of `class` ends that begins at `at`.
    #[inline]
    fn run_end(&self, text: &str, mut at: usize, class: CharClass) -> usize {
        while let Some((found, len)) = self.at(text, at) {
            if found != class {
                break;
            }
            at += len;
        }
        at
    }

    #[inline]
    fn gpt2_end(&self, text: &str, start: usize) -> usize {
        let first = text.as_bytes()[start];
        if first == b'\''
            && let Some(len) = contraction(&text.as_bytes()[start..])
        {
            return start + len;
        }
        let behind_space = start + usize::from(first == b' ');
        match self.at(text, behind_space) {
            Some((CharClass::Space, _)) | None => self.space_end(text, start),
            Some((class, len)) => self.run_end(text, behind_space + len, class),
        }
    }

    /// `\s+(?!\S)|\s+`: white space but for its last character, which goes with the next word.
    fn space_end(&self, text: &str, start: usize) -> usize {
        let end = self.run_end(text, start, CharClass::Space);
        let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
        if end == text.len() || end - last == start { end } else { end - last }
    }

    fn llama_end(
        &self,
        text: &str,
        start: usize,
        (max_digits, joins_last_space): (usize, bool),
    ) -> usize {
        let bytes = text.as_bytes();
        if bytes[start] == b'\''
            && let Some(len) = contraction_any_case(&bytes[start..])
        {
            return start + len;
        }
        let (class, len) = self.at(text, start).expect("the caller stays below the end");
        let second = start + len;
        match class {
            CharClass::Letter => return self.run_end(text, second, class),
            CharClass::Number => {
                let mut end = second;
                for _ in 1..max_digits {
                    match self.at(text, end) {
                        Some((CharClass::Number, len)) => end += len,
                        _ => break,
                    }
                }
                return end;
            }
            CharClass::Other | CharClass::Space => {}
        }
        if !matches!(bytes[start], b'\r' | b'\n')
            && let Some((CharClass::Letter, len)) = self.at(text, second)
        {
            return self.run_end(text, second + len, CharClass::Letter);
        }
        let behind_space = start + usize::from(bytes[start] == b' ');
        if let Some((CharClass::Other, len)) = self.at(text, behind_space) {
            let end = self.run_end(text, behind_space + len, CharClass::Other);
            let is_line_end = |byte: &&u8| matches!(byte, b'\r' | b'\n');
            return end + bytes[end..].iter().take_while(is_line_end).count();
        }
        let end = self.run_end(text, start, CharClass::Space);
        if joins_last_space && end == text.len() {
            return end;
        }
        match bytes[start..end].iter().rposition(|&byte| matches!(byte, b'\r' | b'\n')) {
            Some(last) => start + last + 1,
            None => self.space_end(text, start),
        }
    }
}

/// Length of `'s|'t|'re|'ve|'m|'ll|'d` at the start of `bytes`, which start with an apostrophe.
fn contraction(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [_, b's' | b't' | b'm' | b'd', ..] => Some(2),
        [_, b'r' | b'v', b'e', ..] | [_, b'l', b'l', ..] => Some(3),
        _ => None,
    }
}

/// The same in any case. Of the letters only s has a third form, the long s (U+017F).
fn contraction_any_case(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [_, 0xc5, 0xbf, ..] => Some(3),
        [_, first, rest @ ..] => {
            let second = rest.first().unwrap_or(&0).to_ascii_lowercase();
            contraction(&[b'\'', first.to_ascii_lowercase(), second])
        }
        _ => None,
    }
}
