//! Encoding and decoding with each kind, and what is refused while loading.

use std::fmt::Write as _;
use std::fs;

use tempfile::TempDir;

use super::*;

mod fast;

/// Merges of the tiny vocabulary. Those that hold a line feed (written `\u{10a}`) or a space
/// (`\u{120}`) make mistakes in cutting visible.
const MERGES: [&str; 10] = [
    "t h",
    "th e",
    "\u{120} the",
    "\u{120} a",
    "\u{10a} \u{10a}",
    "\u{10a}\u{10a} \u{10a}",
    "\u{120} \u{120}",
    ", \u{10a}",
    "' s",
    "1 2",
];

fn json_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// `vocab.json` of the 256 byte symbols (ids 0 to 255) and the merges (from 256).
fn vocab_json() -> String {
    let mut symbols: Vec<String> =
        ByteLevel::alphabet().into_iter().map(|symbol| symbol.to_string()).collect();
    symbols.sort_unstable();
    symbols.extend(MERGES.map(|merge| merge.replace(' ', "")));
    let entries: Vec<String> = symbols
        .iter()
        .enumerate()
        .map(|(id, symbol)| format!("{}: {id}", json_string(symbol)))
        .collect();
    format!("{{{}}}", entries.join(", "))
}

/// A folder with `vocab.json` and `merges.txt`.
fn gpt2_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("vocab.json"), vocab_json()).unwrap();
    let mut merges = "#version: 0.2\n".to_owned();
    MERGES.iter().for_each(|merge| writeln!(merges, "{merge}").unwrap());
    fs::write(folder.path().join("merges.txt"), merges).unwrap();
    folder
}

/// The tiny byte-level BPE, from `vocab.json` and `merges.txt`.
pub(crate) fn gpt2_style() -> Tokenizer {
    Tokenizer::from_spec(gpt2_folder().path().to_str().unwrap()).unwrap()
}

/// A `tokenizer.json` of the tiny vocabulary; `fields` are its JSON members beside the model.
fn tokenizer_json(fields: &str, dropout: &str) -> String {
    let merges = MERGES.map(json_string).join(", ");
    format!(
        r#"{{"version": "1.0", {fields},
        "model": {{"type": "BPE", "dropout": {dropout}, "unk_token": null,
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
        "byte_fallback": false, "vocab": {}, "merges": [{merges}]}}}}"#,
        vocab_json()
    )
}

/// Fields of a `tokenizer.json` with this pre-tokenizer.
fn fields(pre_tokenizer: &str) -> String {
    format!(
        r#""truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "decoder": {BYTE_LEVEL}, "pre_tokenizer": {pre_tokenizer}"#
    )
}

const BYTE_LEVEL: &str =
    r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}"#;

fn load(json: &str) -> Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, json).unwrap();
    let by_file = Tokenizer::from_spec(path.to_str().unwrap())?;
    let by_folder = Tokenizer::from_spec(folder.path().to_str().unwrap())?;
    assert_eq!(by_file.describe(), by_folder.describe());
    Ok(by_file)
}

/// A `tokenizer.json` that splits words like Llama 3 (0) or Qwen 2 (1).
pub(crate) fn split_style(known: usize) -> Tokenizer {
    let pattern = json_string(line_ends::KNOWN_PATTERNS[known]);
    let pre_tokenizer = format!(
        r#"{{"type": "Sequence", "pretokenizers": [
        {{"type": "Split", "pattern": {{"Regex": {pattern}}}, "behavior": "Isolated",
        "invert": false}}, {}]}}"#,
        BYTE_LEVEL.replace(r#""use_regex": true"#, r#""use_regex": false"#)
    );
    load(&tokenizer_json(&fields(&pre_tokenizer), "null")).unwrap()
}

#[test]
fn bytes_are_their_own_ids() {
    let tokenizer = Tokenizer::from_spec("bytes").unwrap();
    assert_eq!(tokenizer.vocab_size(), 256);
    assert_eq!(tokenizer.describe(), "bytes (vocab_size 256)");
    assert_eq!(tokenizer.encode("a\u{e9}").unwrap(), [0x61, 0xc3, 0xa9]);
    assert_eq!(tokenizer.encode_bytes(&[0xff, 0]).unwrap(), [255, 0]);
    assert_eq!(tokenizer.decode(&[0x61, 0xc3, 0xa9]).unwrap(), "a\u{e9}");
    assert_eq!(tokenizer.decode(&[0x61, 0xc3]).unwrap(), "a\u{fffd}");
    let message = tokenizer.decode(&[1, 256]).unwrap_err().to_string();
    assert!(message.contains("token 1 to decode: id 256"), "{message}");
}

#[test]
fn gpt2_files_encode_as_gpt2_does() {
    let tokenizer = gpt2_style();
    assert_eq!(tokenizer.vocab_size(), 266);
    assert!(tokenizer.describe().starts_with("byte-level BPE `"), "{}", tokenizer.describe());
    // "the", " the", "'s", " " before a word with no merge, two line feeds.
    let the = tokenizer.encode("the the's").unwrap();
    assert_eq!(the, [257, 258, 264]);
    // GPT-2's expression leaves the last white space before a word alone.
    assert_eq!(tokenizer.encode("\n\n\nthe").unwrap().len(), 3);
    assert_eq!(tokenizer.encode("\n\n\n").unwrap(), [261]);
    assert_eq!(tokenizer.encode("").unwrap(), [0; 0]);
    for text in ["the day's, \u{e9}\u{4e2d}\n\n 12", " \t\u{a0}the", "<|endoftext|>"] {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|&id| id < tokenizer.vocab_size()));
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    let message = tokenizer.decode(&[0, 266]).unwrap_err().to_string();
    assert!(message.contains("token 1 to decode: id 266"), "{message}");
    let message = tokenizer.encode_bytes(b"ab\xff").unwrap_err().to_string();
    assert!(message.contains("text is not UTF-8 at byte 2"), "{message}");
}

#[test]
fn a_tokenizer_json_gives_the_ids_of_the_same_vocabulary() {
    let tokenizer = load(&tokenizer_json(&fields(BYTE_LEVEL), "null")).unwrap();
    let text = "the day's, \u{e9}\u{4e2d}\n\n 12";
    assert_eq!(tokenizer.encode(text).unwrap(), gpt2_style().encode(text).unwrap());
    assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    assert!(tokenizer.describe().starts_with("Hugging Face tokenizer `"));
}

#[test]
fn truncation_and_padding_are_off() {
    let truncation =
        r#"{"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}"#;
    let padding = r#"{"strategy": {"Fixed": 100}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}"#;
    let fields = fields(BYTE_LEVEL)
        .replace(r#""truncation": null"#, &format!(r#""truncation": {truncation}"#))
        .replace(r#""padding": null"#, &format!(r#""padding": {padding}"#));
    let tokenizer = load(&tokenizer_json(&fields, "null")).unwrap();
    assert_eq!(tokenizer.encode("xyzxyzxyz").unwrap().len(), 9);
}

#[test]
fn the_vocabulary_holds_added_tokens_and_gaps() {
    let added = r#"[{"id": 266, "content": "<|end|>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}]"#;
    let fields =
        fields(BYTE_LEVEL).replace(r#""added_tokens": []"#, &format!(r#""added_tokens": {added}"#));
    let tokenizer = load(&tokenizer_json(&fields, "null")).unwrap();
    assert_eq!(tokenizer.vocab_size(), 267);
    assert_eq!(tokenizer.encode("the<|end|>").unwrap(), [257, 266]);
    assert_eq!(tokenizer.decode(&[257, 266]).unwrap(), "the<|end|>");
    assert_eq!(tokenizer.chunking(), Chunking::LineEnds);
    let gap = tokenizer_json(&fields, "null").replace("\"12\": 265", "\"12\": 300");
    assert_eq!(load(&gap).unwrap().vocab_size(), 301);
}

#[test]
fn only_what_is_proved_is_cut_at_line_ends() {
    let chunking = |fields: String| load(&tokenizer_json(&fields, "null")).unwrap().chunking();
    assert_eq!(Tokenizer::bytes().chunking(), Chunking::AnyByte);
    assert_eq!(gpt2_style().chunking(), Chunking::LineEnds);
    assert_eq!(chunking(fields(BYTE_LEVEL)), Chunking::LineEnds);
    assert_eq!(split_style(0).chunking(), Chunking::LineEnds);
    assert_eq!(split_style(1).chunking(), Chunking::LineEnds);
    let prefix = BYTE_LEVEL.replace(r#"space": false"#, r#"space": true"#);
    assert_eq!(chunking(fields(&prefix)), Chunking::Whole);
    let no_split = BYTE_LEVEL.replace(r#"regex": true"#, r#"regex": false"#);
    assert_eq!(chunking(fields(&no_split)), Chunking::Whole);
    assert_eq!(chunking(fields("null")), Chunking::Whole);
    let lowercase = fields(BYTE_LEVEL)
        .replace(r#""normalizer": null"#, r#""normalizer": {"type": "Lowercase"}"#);
    assert_eq!(chunking(lowercase), Chunking::Whole);
    let strips = r#"[{"id": 266, "content": "<m>", "single_word": false, "lstrip": true,
        "rstrip": false, "normalized": false, "special": true}]"#;
    let strips = fields(BYTE_LEVEL).replace(r#"tokens": []"#, &format!(r#"tokens": {strips}"#));
    assert_eq!(chunking(strips), Chunking::Whole);
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let message = Tokenizer::from_spec(path).unwrap_err().to_string();
    for name in ["tokenizer.json", "vocab.json", "merges.txt"] {
        assert!(message.contains(&format!("`{path}/{name}`")), "{message}");
    }
    fs::write(folder.path().join("vocab.json"), vocab_json()).unwrap();
    assert!(Tokenizer::from_spec(path).is_err(), "merges.txt is missing");
    let message = Tokenizer::from_spec("gpt9").unwrap_err().to_string();
    assert!(message.contains("a file or folder `gpt9`; use \"bytes\""), "{message}");
}

#[test]
fn what_cannot_be_used_is_refused() {
    let message = load("{}").unwrap_err().to_string();
    assert!(message.contains("tokenizer.json") && message.contains("not a valid"), "{message}");
    let message = load(&tokenizer_json(&fields(BYTE_LEVEL), "0.1")).unwrap_err().to_string();
    assert!(message.contains("model.dropout is 0.1"), "{message}");
    let folder = gpt2_folder();
    let vocab = vocab_json().replacen("\"!\": 0,", "", 1);
    fs::write(folder.path().join("vocab.json"), vocab).unwrap();
    let message = Tokenizer::from_spec(folder.path().to_str().unwrap()).unwrap_err().to_string();
    assert!(message.contains("no id for the byte symbol '!'"), "{message}");
    fs::write(folder.path().join("vocab.json"), "[").unwrap();
    let message = Tokenizer::from_spec(folder.path().to_str().unwrap()).unwrap_err().to_string();
    assert!(message.contains("vocab.json or merges.txt"), "{message}");
}
