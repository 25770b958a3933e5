//! Inputs: arbitrary bytes, and a valid file with some edits.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Numbers at which readers break: none, signs, wrap-arounds, and just too many.
const NUMBERS: [u64; 12] = [
    0,
    1,
    7,
    255,
    65_535,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 40,
    (1 << 62) + 1,
    i64::MAX as u64,
    u64::MAX,
];

/// Texts at which readers break: paths that lead out, and JSON and TOML of another type.
const TEXTS: [&str; 12] = [
    "../../x",
    "/etc/passwd",
    "\"\"",
    "null",
    "-1",
    "1e999",
    "[]",
    "{}",
    "\u{0}",
    "99999999999999999999",
    "\"\\u0000\"",
    "true",
];

/// One change of a file.
#[derive(Clone, Debug)]
enum Edit {
    Flip(Index, u8),
    Set(Index, u8),
    Number(Index, usize, bool),
    Text(Index, usize),
    Cut(Index),
    Drop(Index, u8),
    Repeat(Index, u8),
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<Index>;
    prop_oneof![
        (place(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (place(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (place(), 0..NUMBERS.len(), any::<bool>()).prop_map(|(at, n, w)| Edit::Number(at, n, w)),
        (place(), 0..TEXTS.len()).prop_map(|(at, text)| Edit::Text(at, text)),
        place().prop_map(Edit::Cut),
        (place(), 1..64_u8).prop_map(|(at, count)| Edit::Drop(at, count)),
        (place(), 1..64_u8).prop_map(|(at, count)| Edit::Repeat(at, count)),
    ]
}

/// Half of the edits fall into the first bytes, where headers are.
const HEAD_BYTES: usize = 256;

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len();
        let at = |index: &Index| {
            let at = index.index(2 * len);
            if at < len { at } else { (at - len) % len.min(HEAD_BYTES) }
        };
        match self {
            Self::Flip(index, bit) => bytes[at(index)] ^= 1 << bit,
            Self::Set(index, byte) => bytes[at(index)] = *byte,
            Self::Number(index, number, is_wide) => {
                let number = NUMBERS[*number].to_le_bytes();
                let number = if *is_wide { &number[..] } else { &number[..4] };
                let start = at(index);
                let end = len.min(start + number.len());
                bytes[start..end].copy_from_slice(&number[..end - start]);
            }
            Self::Text(index, text) => {
                let start = at(index);
                // In place of a number or a word, if there is one.
                let is_word = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'.';
                let count = bytes[start..].iter().take_while(is_word).count();
                bytes.splice(start..start + count, TEXTS[*text].bytes());
            }
            Self::Cut(index) => bytes.truncate(at(index)),
            Self::Drop(index, count) => {
                let start = at(index);
                bytes.drain(start..len.min(start + usize::from(*count)));
            }
            Self::Repeat(index, count) => {
                let start = at(index);
                let part = bytes[start..len.min(start + usize::from(*count))].to_vec();
                bytes.splice(start..start, part);
            }
        }
    }
}

/// Inputs made of a valid one: arbitrary bytes, its beginning with arbitrary bytes behind, or the
/// whole with one to six edits.
pub(crate) fn inputs(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let head = valid.clone();
    let behind = (any::<Index>(), vec(any::<u8>(), 0..256)).prop_map(move |(cut, tail)| {
        [&head[..cut.index(head.len().min(HEAD_BYTES) + 1).min(head.len())], &tail].concat()
    });
    let edited = vec(edit(), 1..7).prop_map(move |edits| {
        let mut bytes = valid.clone();
        edits.iter().for_each(|edit| edit.apply(&mut bytes));
        bytes
    });
    prop_oneof![
        1 => vec(any::<u8>(), 0..512),
        1 => behind,
        6 => edited,
    ]
}
