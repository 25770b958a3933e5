//! Encoding in parts gives the ids of the whole text, and files come out whole.

use proptest::prelude::*;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::token_file::TokenFile;
use crate::tokenize::tests::{gpt2_style, split_style};

/// The ids of a text encoded in parts of about this size, and the number of bytes.
fn in_parts(tokenizer: &Tokenizer, text: &[u8], block_bytes: usize) -> Result<(Vec<u32>, u64)> {
    let folder = tempfile::tempdir().unwrap();
    let text_path = folder.path().join("text.txt");
    std::fs::write(&text_path, text).unwrap();
    let sizes = Sizes { block_bytes, ..Sizes::new(2) };
    let mut ids = Vec::new();
    let num_bytes = encode_file(&text_path, tokenizer, (folder.path(), sizes), &mut |new| {
        ids.extend_from_slice(new);
        Ok(())
    })?;
    Ok((ids, num_bytes))
}

fn check_parts(tokenizer: &Tokenizer, text: &str) {
    let whole = tokenizer.encode(text).unwrap();
    for block_bytes in [1, 3, 7, 16, 1 << 20] {
        let (ids, num_bytes) = in_parts(tokenizer, text.as_bytes(), block_bytes).unwrap();
        assert_eq!(ids, whole, "{text:?} in blocks of {block_bytes}");
        assert_eq!(num_bytes, text.len() as u64);
    }
}

/// Nobody asks for the end.
static GO_ON: AtomicBool = AtomicBool::new(false);

#[test]
fn a_request_to_stop_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (text_path, out_path) = (folder.path().join("text"), folder.path().join("tokens"));
    std::fs::write(&text_path, "some text").unwrap();
    let stop = AtomicBool::new(true);
    let outcome = tokenize_text_file(&text_path, &out_path, &Tokenizer::bytes(), &stop);
    assert!(matches!(outcome, Err(Error::Interrupted)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the text is there");
}

#[test]
fn difficult_texts_are_the_same_in_parts() {
    let texts = [
        "",
        "no line feed at all",
        "the the's\n\n\nthe,\nthe,\n\n  the \n the\r\nthe 12\n12",
        "\n\n\n",
        "a\n",
        "a\n\u{e9}\n\u{301}\u{4e2d}\n\u{a0}b\n",
        "it'\ns it'l\nl 'the\n's",
        "1\n2\n 1212\n12",
    ];
    for tokenizer in [Tokenizer::bytes(), gpt2_style(), split_style(0), split_style(1)] {
        texts.iter().for_each(|text| check_parts(&tokenizer, text));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_is_the_same_in_parts(
        text in "([a-t]|the|'s|[ ,.!'\n\r\t]|\n|\n|12|\u{e9}|\u{301}|\u{2003}|\u{85}|\u{17f}){0,60}",
    ) {
        for tokenizer in [gpt2_style(), split_style(0), split_style(1)] {
            check_parts(&tokenizer, &text);
        }
    }
}

#[test]
fn a_file_is_tokenized_and_summed_up() {
    let folder = tempfile::tempdir().unwrap();
    let (text_path, out_path) = (folder.path().join("a.txt"), folder.path().join("a.bin"));
    let text = "the day's work\n\nis the end, the\n".repeat(500);
    std::fs::write(&text_path, &text).unwrap();
    for tokenizer in [Tokenizer::bytes(), gpt2_style()] {
        let summary = tokenize_text_file(&text_path, &out_path, &tokenizer, &GO_ON).unwrap();
        let file = TokenFile::open(&out_path).unwrap();
        let expected = tokenizer.encode(&text).unwrap();
        let mut ids = vec![0; expected.len()];
        file.read(0, &mut ids).unwrap();
        assert_eq!(ids, expected);
        file.verify().unwrap();
        assert_eq!(summary.num_tokens, file.num_tokens());
        assert_eq!(summary.num_bytes, text.len() as u64);
        assert_eq!(summary.vocab_size, file.vocab_size());
        assert_eq!(summary.fingerprint, file.fingerprint());
    }
}

#[test]
fn bytes_take_any_file_and_others_name_the_bad_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (text_path, out_path) = (folder.path().join("a.txt"), folder.path().join("a.bin"));
    std::fs::write(&text_path, b"ab\ncd\n\xff\n").unwrap();
    assert_eq!(
        tokenize_text_file(&text_path, &out_path, &Tokenizer::bytes(), &GO_ON).unwrap().num_tokens,
        8
    );
    std::fs::remove_file(&out_path).unwrap();
    let message =
        tokenize_text_file(&text_path, &out_path, &gpt2_style(), &GO_ON).unwrap_err().to_string();
    assert!(message.contains("a.txt` is not UTF-8 at byte 6"), "{message}");
    // The offset counts from the start of the file, not of the part.
    let message = in_parts(&gpt2_style(), b"ab\ncd\n\xff\n", 3).unwrap_err().to_string();
    assert!(message.contains("text.txt` is not UTF-8 at byte 6"), "{message}");
    assert!(!out_path.exists(), "nothing may be published after an error");
}

#[test]
fn empty_and_missing_texts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (text_path, out_path) = (folder.path().join("a.txt"), folder.path().join("a.bin"));
    let refused = || {
        tokenize_text_file(&text_path, &out_path, &Tokenizer::bytes(), &GO_ON)
            .unwrap_err()
            .to_string()
    };
    assert!(refused().contains("cannot open the text file"), "{}", refused());
    std::fs::write(&text_path, "").unwrap();
    assert!(refused().contains("would hold 0 tokens"), "{}", refused());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
