//! Every kind of input comes out as the same documents; jobs resume; bad input does what it says.

mod bad_input;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::source::Source;
use crate::tokenize::tests::gpt2_style as new_gpt2_style;

const TEXTS: [&str; 5] =
    ["the first", "the second\nhas two lines", "\u{e9}\u{4e2d} \"quoted\"", "the the 12", "last"];

/// One for all tests: its description holds the folder it was read from.
fn gpt2_style() -> &'static Tokenizer {
    static TOKENIZER: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(new_gpt2_style);
    &TOKENIZER
}

static GO_ON: AtomicBool = AtomicBool::new(false);

fn options(folder: &TempDir, inputs: &[&str]) -> TokenizeOptions {
    TokenizeOptions {
        inputs: inputs.iter().map(|name| path(folder, name)).collect(),
        out: folder.path().join("out"),
        documents: DocumentOptions {
            text_documents: TextDocuments::Files,
            text_field: "text".to_owned(),
            on_bad_utf8: BadUtf8::Fail,
            on_bad_record: BadRecord::Fail,
            score: None,
        },
        end_of_document: EndOfDocument::Id(266),
        deduplicate: false,
        shard_tokens: 1 << 20,
        num_threads: 2,
    }
}

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) {
    fs::write(folder.path().join(name), bytes).unwrap();
}

fn run(options: &TokenizeOptions) -> Result<Manifest> {
    tokenize_corpus(options, gpt2_style(), &Progress::default(), &GO_ON)
}

fn refusal(options: &TokenizeOptions) -> String {
    run(options).unwrap_err().to_string()
}

/// The ids of each document of a folder, end-of-document token included.
fn documents(out: &Path) -> Vec<Vec<u32>> {
    let source = Source::open(out).unwrap();
    source.verify().unwrap();
    Manifest::read(out).unwrap().verify(out).unwrap();
    let read = |document| {
        let span = source.document(document).unwrap();
        let mut ids = vec![0; (span.end - span.start) as usize];
        source.read(span.start, &mut ids).unwrap();
        assert_eq!(source.document_at(span.start), Some(document));
        assert_eq!(source.document_at(span.end - 1), Some(document));
        ids
    };
    (0..source.num_documents().unwrap()).map(read).collect()
}

fn expected(texts: &[&str]) -> Vec<Vec<u32>> {
    let encode = |text: &&str| [gpt2_style().encode(text).unwrap(), vec![266]].concat();
    texts.iter().map(encode).collect()
}

fn json_lines(texts: &[&str]) -> String {
    let line = |text: &&str| {
        let value = serde_json::json!({"id": [1, {"a": null}], "meta": {"text": text}, "score": text.len()});
        format!("{value}\n")
    };
    texts.iter().map(line).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A Parquet file of an optional text and a score, in row groups of two.
fn parquet(texts: &[Option<&str>]) -> Vec<u8> {
    use parquet::data_type::{ByteArrayType, DoubleType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    let schema = "message schema { required double score; optional binary text (UTF8); }";
    let schema = parquet::schema::parser::parse_message_type(schema).unwrap();
    let properties =
        WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut bytes, schema.into(), properties.into()).unwrap();
    for rows in texts.chunks(2) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let scores: Vec<f64> =
            rows.iter().map(|text| text.map_or(0.0, |text| text.len() as f64)).collect();
        column.typed::<DoubleType>().write_batch(&scores, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let levels: Vec<i16> = rows.iter().map(|text| i16::from(text.is_some())).collect();
        let values: Vec<_> = rows.iter().flatten().map(|&text| text.into()).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

#[test]
fn every_format_gives_the_same_documents() {
    let jsonl = json_lines(&TEXTS).into_bytes();
    let rows = parquet(&TEXTS.map(Some));
    let plain = TEXTS.join("<|sep|>").into_bytes();
    let kinds: [(&str, &[u8], &str); 3] =
        [("a.jsonl", &jsonl, "meta.text"), ("b.parquet", &rows, "text"), ("c.txt", &plain, "")];
    for (name, bytes, field) in kinds {
        let packed = [
            (name.to_owned(), bytes.to_vec()),
            (format!("{name}.gz"), gzip(bytes)),
            (format!("{name}.zst"), zstd(bytes)),
        ];
        for (name, bytes) in packed {
            let folder = tempfile::tempdir().unwrap();
            write(&folder, &name, &bytes);
            let mut options = options(&folder, &[&name]);
            options.documents.text_field = field.to_owned();
            options.documents.text_documents =
                TextDocuments::Separated { separator: "<|sep|>".to_owned() };
            let manifest = run(&options).unwrap();
            assert_eq!(documents(&options.out), expected(&TEXTS), "{name}");
            assert_eq!(manifest.counts.num_documents, 5, "{name}");
            assert_eq!(manifest.counts.num_records, 5, "{name}");
            let source = Source::open(&options.out).unwrap();
            let origin = source.origin(3).unwrap().unwrap();
            assert_eq!((origin.input, origin.record), (folder.path().join(&name), 3));
            assert_eq!(source.find_document(&folder.path().join(&name), 3), Some(3));
        }
    }
}

#[test]
fn folders_and_globs_are_read_in_order() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("in/sub")).unwrap();
    for (name, text) in
        [("in/b.txt", "two"), ("in/a.md", "one"), ("in/sub/c.txt", "three"), ("in/.h.txt", "no")]
    {
        write(&folder, name, text.as_bytes());
    }
    write(&folder, "in/x.bin", b"no");
    let mut by_folder = options(&folder, &["in"]);
    run(&by_folder).unwrap();
    assert_eq!(documents(&by_folder.out), expected(&["one", "two", "three"]));
    by_folder.out = folder.path().join("globbed");
    by_folder.inputs = vec![path(&folder, "in/*.txt"), path(&folder, "in/x.bin")];
    run(&by_folder).unwrap();
    assert_eq!(documents(&by_folder.out), expected(&["two", "no"]));
    for (input, words) in [
        ("none", "cannot open the input"),
        ("no*", "names no file"),
        ("in/[", "cannot be expanded"),
    ] {
        by_folder.inputs = vec![path(&folder, input)];
        let message = refusal(&by_folder);
        assert!(message.contains(words), "{message}");
    }
}

/// Every file of a folder by name.
fn all_files(out: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(out)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (PathBuf::from(path.file_name().unwrap()), fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn check_same(out: &Path, expected: &[(PathBuf, Vec<u8>)]) {
    let found = all_files(out);
    let names = |files: &[(PathBuf, Vec<u8>)]| -> Vec<PathBuf> {
        files.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&found), names(expected), "{}", out.display());
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert!(found == expected, "{} in {} differs", name.display(), out.display());
    }
}

/// Two files, one of them compressed, that make some forty shards of 500 tokens.
fn large_job(folder: &TempDir) -> TokenizeOptions {
    let texts: Vec<String> =
        (0..2000).map(|i| format!("the {i}\n{}", "x ".repeat(i % 7))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    write(folder, "a.jsonl.zst", &zstd(json_lines(&texts).as_bytes()));
    write(folder, "b.jsonl", json_lines(&texts[..900]).as_bytes());
    let some: Vec<_> = texts[500..900].iter().map(|&text| Some(text)).collect();
    write(folder, "c.parquet", &parquet(&some));
    write(folder, "d.txt", texts.join("\n").as_bytes());
    let mut options = options(folder, &["a.jsonl.zst", "b.jsonl", "d.txt"]);
    options.documents.text_field = "meta.text".to_owned();
    options.shard_tokens = 500;
    options
}

#[test]
fn the_same_bytes_come_out_on_any_number_of_threads_and_after_interruptions() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = large_job(&folder);
    for deduplicate in [false, true] {
        options.deduplicate = deduplicate;
        options.out = folder.path().join(format!("one-{deduplicate}"));
        options.num_threads = 1;
        let manifest = run(&options).unwrap();
        assert!(manifest.shards.len() > 20, "{} shards", manifest.shards.len());
        assert_eq!(manifest.counts.num_duplicates, if deduplicate { 900 } else { 0 });
        let expected = all_files(&options.out);
        options.out = folder.path().join(format!("three-{deduplicate}"));
        options.num_threads = 3;
        run(&options).unwrap();
        check_same(&options.out, &expected);
        // A kill leaves whole shards, perhaps a token file whose record is missing, and partials.
        for kept in [0, 1, 7, manifest.shards.len()] {
            options.out = folder.path().join(format!("resumed-{deduplicate}-{kept}"));
            fs::create_dir(&options.out).unwrap();
            for (name, bytes) in &expected {
                let name = name.to_str().unwrap();
                let number = name.get(6..11).and_then(|number| number.parse::<usize>().ok());
                let is_record = name.ends_with("json");
                if name == JOB_NAME || number.is_some_and(|n| n < kept || n == kept && !is_record) {
                    fs::write(options.out.join(name), bytes).unwrap();
                }
            }
            run(&options).unwrap();
            check_same(&options.out, &expected);
        }
        let progress = Progress::default();
        let again = tokenize_corpus(&options, gpt2_style(), &progress, &GO_ON).unwrap();
        assert_eq!(again, manifest);
        assert_eq!(progress.num_tokens.into_inner(), manifest.counts.num_tokens);
        let (read, total) = (progress.read_bytes.into_inner(), progress.total_bytes.into_inner());
        assert_eq!(read, total);
    }
}

#[test]
fn a_request_to_stop_keeps_what_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let options = large_job(&folder);
    let stop = AtomicBool::new(true);
    let stopped = tokenize_corpus(&options, gpt2_style(), &Progress::default(), &stop);
    assert!(stopped.unwrap_err().to_string().contains("holds 0 finished shards"));
    run(&options).unwrap();
}

#[test]
fn a_job_that_goes_on_must_be_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = large_job(&folder);
    run(&options).unwrap();
    options.shard_tokens = 600;
    assert!(refusal(&options).contains("begun with another set of options"));
    options.shard_tokens = 500;
    options.end_of_document = EndOfDocument::Absent;
    assert!(refusal(&options).contains("another end-of-document token"));
    options.end_of_document = EndOfDocument::Id(266);
    let bytes = Tokenizer::bytes();
    let other = tokenize_corpus(&options, &bytes, &Progress::default(), &GO_ON);
    assert!(other.unwrap_err().to_string().contains("begun with another tokenizer"));
    let inputs = options.inputs.clone();
    options.inputs.pop();
    assert!(refusal(&options).contains("begun with another list of inputs"));
    options.inputs = inputs;
    fs::remove_file(options.out.join(MANIFEST_NAME)).unwrap();
    let tokens = options.out.join("shard-00003.tokens");
    let good = fs::read(&tokens).unwrap();
    fs::write(&tokens, &good[..good.len() - 1]).unwrap();
    assert!(refusal(&options).contains("shard-00003.tokens` is damaged: its SHA-256"));
    fs::write(&tokens, good).unwrap();
    run(&options).unwrap();
    let input = folder.path().join("b.jsonl");
    let mut bytes = fs::read(&input).unwrap();
    bytes[20] ^= 1;
    fs::write(&input, bytes).unwrap();
    let message = refusal(&options);
    assert!(message.contains("b.jsonl` is") && message.contains("fingerprint"), "{message}");
    fs::remove_file(&input).unwrap();
    assert!(refusal(&options).contains("b.jsonl` is missing, but the job"));
}

#[test]
fn scores_and_duplicates_select_documents() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["aa", "bbbb", "aa", "cccccc", "bbbb", "aa"];
    write(&folder, "a.jsonl", json_lines(&texts).as_bytes());
    write(&folder, "b.parquet", &parquet(&texts.map(Some)));
    for (name, field) in [("a.jsonl", "meta.text"), ("b.parquet", "text")] {
        let mut options = options(&folder, &[name]);
        options.out = folder.path().join(format!("out-{name}"));
        options.documents.text_field = field.to_owned();
        let field = "score".to_owned();
        options.documents.score = Some(ScoreFilter { field, min: None, max: Some(4.0) });
        options.deduplicate = true;
        let counts = run(&options).unwrap().counts;
        assert_eq!(documents(&options.out), expected(&["aa", "bbbb"]));
        assert_eq!((counts.num_filtered, counts.num_duplicates), (1, 3));
        options.out = folder.path().join(format!("min-{name}"));
        options.documents.score.as_mut().unwrap().min = Some(5.0);
        options.documents.score.as_mut().unwrap().max = None;
        run(&options).unwrap();
        assert_eq!(documents(&options.out), expected(&["cccccc"]));
    }
    write(&folder, "c.txt", b"plain");
    let mut options = options(&folder, &["c.txt"]);
    options.documents.score = Some(ScoreFilter { field: "s".to_owned(), min: None, max: None });
    assert!(refusal(&options).contains("score is `s`, with plain text"));
    // Whole files are told by their content too.
    write(&folder, "d.txt", b"plain");
    options.documents.score = None;
    options.deduplicate = true;
    options.inputs.push(path(&folder, "d.txt"));
    assert_eq!(run(&options).unwrap().counts.num_duplicates, 1);
}
