//! This room's BPE gives the crate's ids, and tiktoken's ranks give those of their definition.

use proptest::prelude::*;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;
use tokenizers::utils::SysRegex;

use super::super::line_ends::KNOWN_PATTERNS;
use super::super::merges::{Merges, Work};
use super::super::words::{Classes, WordPattern};
use super::super::*;
use super::{gpt2_style, split_style};

const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const CL100K_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
);

fn llama(max_digits: usize, joins_last_space: bool) -> WordPattern {
    WordPattern::Llama { classes: Classes::new(), max_digits, joins_last_space }
}

fn check_words(text: &str) {
    let cases = [
        (WordPattern::Gpt2(Classes::new()), GPT2_PATTERN),
        (llama(3, false), KNOWN_PATTERNS[0]),
        (llama(1, false), KNOWN_PATTERNS[1]),
        (llama(3, true), CL100K_PATTERN),
    ];
    for (pattern, regex) in cases {
        let mut words = Vec::new();
        pattern.split(text, |word| words.push(word));
        let regex = SysRegex::new(regex).unwrap();
        let expected: Vec<&str> =
            regex.find_iter(text).map(|(start, end)| &text[start..end]).collect();
        assert_eq!(words, expected, "{text:?}");
    }
}

#[test]
fn difficult_texts_are_cut_as_the_expressions_say() {
    for text in [
        "",
        " ",
        "  a   b \n\n  c\t\td\r\n e  ",
        "it's IT'S it'S don'T 'll 'LL 'lL 've're'x 's'",
        "a\u{17f}'\u{17f} 1234567 12 \u{b2}\u{2167}\u{0664}x",
        "\u{a0}a \u{2003}\u{3000}b!?\n\n!!\r\n",
        "\u{e9}\u{301}\u{4e2d}\u{6587} \u{1f600}\u{200d}x \u{0e33}\u{93f}",
        "x\n \n  \n",
        "\n\n a",
        "!\n a 'tis '",
    ] {
        check_words(text);
    }
}

/// Text of characters that the expressions tell apart.
fn text() -> impl Strategy<Value = String> {
    let characters = "[ \n\r\t'a-eslvremtdLS1-3!.,/\u{a0}\u{3000}\u{85}\u{17f}\u{e9}\u{301}\u{4e2d}\
                      \u{b2}\u{2167}\u{1f600}\u{1c5}\u{2b0}]|the|  |\n\n|'ll|'RE|[\\PC]";
    proptest::string::string_regex(&format!("({characters}){{0,40}}")).unwrap()
}

proptest! {
    #[test]
    fn any_text_is_cut_as_the_expressions_say(text in text()) {
        check_words(&text);
    }

    #[test]
    fn any_text_has_the_ids_of_the_crate(text in text()) {
        for tokenizer in [gpt2_style(), split_style(0), split_style(1)] {
            check_ids(&tokenizer, &text);
        }
    }

    /// Long words go through the heap; few letters make many merges.
    #[test]
    fn long_words_merge_as_short_ones_do(word in "[ab]{2,300}", ranks in prop::collection::vec(0..100_u32, 12)) {
        let merges = tiny_merges(&ranks);
        let mut ids = Vec::new();
        merges.encode(word.as_bytes(), &mut Work::default(), &mut ids);
        prop_assert_eq!(ids, merged_by_definition(word.as_bytes(), &ranks));
    }
}

/// Merges over a and b: pair (i, j) of the ids so far becomes a new id, with these ranks.
fn tiny_pairs(ranks: &[u32]) -> Vec<(u32, u32, u32, u32)> {
    let pairs = [
        (97, 98),
        (98, 97),
        (97, 97),
        (98, 98),
        (256, 256),
        (257, 97),
        (258, 258),
        (259, 256),
        (260, 257),
        (256, 97),
        (97, 256),
        (262, 262),
    ];
    let pair = |((left, right), (number, rank)): ((u32, u32), (u32, &u32))| {
        // Distinct ranks, as in a file of merges.
        (left, right, rank * 16 + number, 256 + number)
    };
    pairs.into_iter().zip((0..).zip(ranks)).map(pair).collect()
}

fn tiny_merges(ranks: &[u32]) -> Merges {
    Merges::new(std::array::from_fn(|byte| byte as u32), &tiny_pairs(ranks), None)
}

/// The definition, in the plainest way.
fn merged_by_definition(word: &[u8], ranks: &[u32]) -> Vec<u32> {
    let pairs = tiny_pairs(ranks);
    let mut ids: Vec<u32> = word.iter().map(|&byte| u32::from(byte)).collect();
    loop {
        let best = ids.windows(2).enumerate().filter_map(|(at, window)| {
            let found = pairs.iter().find(|pair| (pair.0, pair.1) == (window[0], window[1]))?;
            Some((found.2, at, found.3))
        });
        let Some((_, at, merged)) = best.min() else { return ids };
        ids.splice(at..at + 2, [merged]);
    }
}

fn check_ids(tokenizer: &Tokenizer, text: &str) {
    let Kind::Subword(subword) = &tokenizer.kind else { panic!("it is of the crate") };
    assert!(subword.fast.is_some(), "it can be done without the crate");
    let expected = subword.inner.encode_fast(text, false).unwrap().get_ids().to_vec();
    assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
    // Once more with a cache, twice over, so that the second half is found in it.
    let mut ids = Vec::new();
    let mut encoder = Encoder::new(tokenizer);
    encoder.encode(text, &mut ids).unwrap();
    encoder.encode(text, &mut ids).unwrap();
    assert_eq!(ids, [expected.clone(), expected].concat(), "{text:?}");
}

#[test]
fn real_text_has_the_ids_of_the_crate() {
    let text = include_str!("../../../shakespeare.txt");
    for tokenizer in [gpt2_style(), split_style(0), split_style(1)] {
        check_ids(&tokenizer, &text[..200_000]);
    }
}

#[test]
fn what_it_cannot_vouch_for_is_left_to_the_crate() {
    let mut inner = match gpt2_style().kind {
        Kind::Subword(subword) => subword.inner,
        _ => panic!("it is of the crate"),
    };
    inner.add_special_tokens([tokenizers::AddedToken::from("<|end|>", true)]).unwrap();
    let tokenizer = Tokenizer::from_subword(inner.clone(), Path::new("x"), "x").unwrap();
    check_ids(&tokenizer, "the<|end|> the");
    assert!(tokenizer.encode("a<|end|>").unwrap().contains(&266));
    assert_eq!(tokenizer.token_id("<|end|>"), Some(266));
    let pattern = SplitPattern::Regex(r"\s+|\S+".to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
    inner.with_pre_tokenizer(Some(split));
    assert!(FastBpe::of(&inner).is_none(), "an expression that is not known");
}

/// Ranks of all bytes and some pairs, brought to the size of a known encoding.
fn ranks_file(merged: &[&[u8]], num_ranks: usize) -> String {
    let symbols = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let base64 = |bytes: &[u8]| -> String {
        let groups = bytes.chunks(3).map(|group| {
            let bits = group.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte))
                << (8 * (3 - group.len()));
            (0..4)
                .map(|i| {
                    let symbol = symbols[(bits >> (18 - 6 * i) & 63) as usize];
                    if i <= group.len() { char::from(symbol) } else { '=' }
                })
                .collect::<String>()
        });
        groups.collect()
    };
    let tokens = (0..=255_u8).map(|byte| vec![byte]);
    let tokens = tokens.chain(merged.iter().map(|token| token.to_vec()));
    // Tokens that no text has.
    let fill = (0_u32..).map(|i| [&[0xff, 0xfe], i.to_be_bytes().as_slice()].concat());
    let lines = tokens.chain(fill).take(num_ranks).enumerate();
    lines.map(|(rank, token)| format!("{} {rank}\n", base64(&token))).collect()
}

#[test]
fn ranks_are_read_and_merge_by_rank() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.tiktoken");
    let merged: [&[u8]; 4] = [b"th", b" th", b"the", b" the"];
    std::fs::write(&path, ranks_file(&merged, 50_256)).unwrap();
    let tokenizer = Tokenizer::from_spec(path.to_str().unwrap()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 50_257);
    assert_eq!(tokenizer.token_id("<|endoftext|>"), Some(50_256));
    let ids = tokenizer.encode("the the th the\u{e9}").unwrap();
    // " the" is a token, so it is taken whole; "the\u{e9}" is one word and is merged.
    assert_eq!(ids, [258, 259, 257, 259, 0xc3, 0xa9]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "the the th the\u{e9}");
    assert!(tokenizer.decode(&[50_257]).is_err());
    assert_eq!(tokenizer.chunking(), Chunking::LineEnds);
    for (content, words) in [
        ("dGg= 1\nx".to_owned(), "line 2 is not `BASE64 RANK`"),
        (ranks_file(&merged, 300), "it has 300 ranks; known encodings have"),
        (ranks_file(&merged, 50_256).replacen("AA== 0", "AAAA 0", 1), "the byte 0x00 has no rank"),
        (ranks_file(&merged, 50_256).replacen(" 7\n", " 4000000000\n", 1), "far beyond"),
    ] {
        std::fs::write(&path, content).unwrap();
        let message = Tokenizer::from_spec(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn fingerprints_tell_tokenizers_and_vocabularies_apart() {
    let [one, two, three] = [gpt2_style(), split_style(0), Tokenizer::bytes()];
    assert_eq!(one.fingerprint(), gpt2_style().fingerprint(), "the folder is no part of it");
    assert_ne!(one.fingerprint(), two.fingerprint());
    assert_eq!(one.vocabulary_fingerprint(), two.vocabulary_fingerprint());
    assert_ne!(one.vocabulary_fingerprint(), three.vocabulary_fingerprint());
}

#[test]
fn a_tokenizer_is_trained_the_same_twice() {
    use crate::{BadRecord, BadUtf8, DocumentOptions, Progress, TextDocuments};
    let folder = tempfile::tempdir().unwrap();
    let text = include_str!("../../../shakespeare.txt");
    let input = folder.path().join("in.txt");
    std::fs::write(&input, &text[..300_000]).unwrap();
    let mut options = TrainOptions {
        inputs: vec![input.to_str().unwrap().to_owned()],
        documents: DocumentOptions {
            text_documents: TextDocuments::Files,
            text_field: String::new(),
            on_bad_utf8: BadUtf8::Fail,
            on_bad_record: BadRecord::Fail,
            score: None,
        },
        out: folder.path().join("one.json"),
        vocab_size: 600,
        min_frequency: 2,
        special_tokens: vec!["<|endoftext|>".to_owned()],
    };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut train = |name: &str| {
        options.out = folder.path().join(name);
        train_tokenizer(&options, &Progress::default(), &stop).unwrap();
        std::fs::read(&options.out).unwrap()
    };
    assert_eq!(train("one.json"), train("two.json"));
    let tokenizer = Tokenizer::from_spec(folder.path().join("one.json").to_str().unwrap()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 600);
    assert_eq!(tokenizer.token_id("<|endoftext|>"), Some(0));
    check_ids(&tokenizer, &text[..50_000]);
    let ids = tokenizer.encode(&text[..50_000]).unwrap();
    assert!(ids.len() < 30_000, "{} ids of 50,000 bytes", ids.len());
    assert_eq!(tokenizer.decode(&ids).unwrap(), text[..50_000]);
    options.vocab_size = 256;
    let refused = train_tokenizer(&options, &Progress::default(), &stop).unwrap_err();
    assert!(refused.to_string().contains("vocab_size is 256, expected at least"), "{refused}");
    options.vocab_size = 600;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let stopped = train_tokenizer(&options, &Progress::default(), &stop);
    assert!(matches!(stopped, Err(Error::Interrupted)));
}
