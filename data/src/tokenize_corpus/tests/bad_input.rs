//! Bad input is left out and counted, or named, as the policy says.

use super::*;

#[test]
fn bad_utf8_follows_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "a.txt", b"good\nb\xffd\r\nlast\n");
    let mut options = options(&folder, &["a.txt"]);
    options.documents.text_documents = TextDocuments::Lines;
    let message = refusal(&options);
    assert!(message.contains("a.txt` line 2 is not UTF-8 at byte 1"), "{message}");
    for (policy, texts) in [
        (BadUtf8::Replace, ["good", "b\u{fffd}d", "last"].as_slice()),
        (BadUtf8::Skip, ["good", "last"].as_slice()),
    ] {
        options.documents.on_bad_utf8 = policy;
        options.out = folder.path().join(format!("{policy:?}"));
        let counts = run(&options).unwrap().counts;
        assert_eq!(documents(&options.out), expected(texts));
        let replaced = u64::from(policy == BadUtf8::Replace);
        assert_eq!((counts.num_replaced_utf8, counts.num_bad_utf8), (replaced, 1 - replaced));
    }
    // The same for a whole file, which is read in parts.
    write(&folder, "ok.txt", b"fine");
    options.documents.text_documents = TextDocuments::Files;
    options.inputs.push(path(&folder, "ok.txt"));
    options.documents.on_bad_utf8 = BadUtf8::Skip;
    options.out = folder.path().join("files");
    assert_eq!(run(&options).unwrap().counts.num_bad_utf8, 1);
    assert_eq!(documents(&options.out), expected(&["fine"]));
    options.documents.on_bad_utf8 = BadUtf8::Fail;
    options.out = folder.path().join("failed");
    assert!(refusal(&options).contains("a.txt` is not UTF-8 at byte 6"));
}

#[test]
fn broken_records_follow_the_policy_and_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{\"text\": \"one\"}\n{\"text\": \"tw\n{\"other\": 1}\n{\"text\": null}\n\n\
                 {\"text\": \"\"}\n{\"text\": \"two\"} x\n{\"text\": \"three\"}";
    write(&folder, "a.jsonl", lines.as_bytes());
    let mut options = options(&folder, &["a.jsonl"]);
    let message = refusal(&options);
    assert!(message.contains("a.jsonl` line 2: broken JSON"), "{message}");
    options.documents.on_bad_record = BadRecord::Skip;
    let manifest = run(&options).unwrap();
    assert_eq!(documents(&options.out), expected(&["one", "three"]));
    assert_eq!((manifest.counts.num_bad_records, manifest.counts.num_empty), (4, 2));
    assert_eq!(manifest.counts.num_records, 8);
    let notes: Vec<(u64, &str)> =
        manifest.bad_records.iter().map(|note| (note.number, note.cause.as_str())).collect();
    assert_eq!(notes[1], (3, "it has no field `text`"));
    assert_eq!(notes[2], (4, "field `text` is null, not text"));
    assert!(notes[3].1.contains("trailing characters"), "{notes:?}");
    let null = parquet(&[Some("a"), None, None, Some("b")]);
    write(&folder, "a.parquet", &null);
    options.inputs = vec![path(&folder, "a.parquet")];
    options.out = folder.path().join("rows");
    assert_eq!(run(&options).unwrap().counts.num_bad_records, 2);
    assert_eq!(documents(&options.out), expected(&["a", "b"]));
    options.out = folder.path().join("fail");
    options.documents.on_bad_record = BadRecord::Fail;
    let message = refusal(&options);
    assert!(message.contains("a.parquet` row 2: column `text` is null"), "{message}");
    options.documents.text_field = "body".to_owned();
    let message = refusal(&TokenizeOptions { out: folder.path().join("no"), ..options });
    assert!(message.contains("column `body`: the file has score, text"), "{message}");
}

#[test]
fn damaged_and_empty_inputs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let packed = gzip(json_lines(&TEXTS).as_bytes());
    write(&folder, "a.jsonl.gz", &packed[..packed.len() / 2]);
    write(&folder, "b.jsonl.zst", b"not compressed");
    write(&folder, "c.parquet", b"not parquet at all");
    write(&folder, "d.txt", b"");
    for (name, words) in [
        ("a.jsonl.gz", "broken compressed data"),
        ("b.jsonl.zst", "broken compressed data"),
        ("c.parquet", "broken Parquet data"),
        ("d.txt", "nothing is left to write"),
    ] {
        let mut options = options(&folder, &[name]);
        options.documents.text_field = "meta.text".to_owned();
        options.out = folder.path().join(format!("out-{name}"));
        let message = refusal(&options);
        assert!(message.contains(words), "{name}: {message}");
    }
}

#[test]
fn options_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "a.txt", b"text");
    let mut options = options(&folder, &["a.txt"]);
    options.end_of_document = EndOfDocument::Token("<|none|>".to_owned());
    assert!(refusal(&options).contains("`<|none|>` is not in the vocabulary"));
    options.end_of_document = EndOfDocument::Absent;
    options.shard_tokens = 0;
    assert_eq!(refusal(&options), "shard_tokens is 0, expected at least 1");
    options.shard_tokens = 1;
    options.documents.text_documents = TextDocuments::Separated { separator: String::new() };
    assert!(refusal(&options).contains("separator is empty"));
}

#[test]
fn a_job_in_a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "a.txt", b"text");
    let mut options = options(&folder, &["a.txt"]);
    options.out = folder.path().join("a.txt/out");
    let message = refusal(&options);
    assert!(message.contains("cannot create the folder") && message.contains("a.txt/out"));
}
