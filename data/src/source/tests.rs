//! Every format gives the same ids; damage is named.

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::token_file::TokenWriter;

const IDS: [u32; 7] = [5, 999, 0, 7, 300, 12, 1];

fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn ids_as<const N: usize>(encode: impl Fn(u32) -> [u8; N]) -> Vec<u8> {
    IDS.iter().flat_map(|&id| encode(id)).collect()
}

fn u16_ids() -> Vec<u8> {
    ids_as(|id| (id as u16).to_le_bytes())
}

fn npy(descr: &str, shape: &str, payload: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00".as_slice(), &length, header.as_bytes(), payload].concat()
}

fn llm_c(magic: u32, version: u32, num_tokens: u32, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 1024];
    for (at, value) in [(0, magic), (4, version), (8, num_tokens)] {
        header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    [header, payload.to_vec()].concat()
}

/// An index of sequences of 3, 2 and 2 tokens in documents of two sequences and one.
fn megatron_index(dtype: u8, size_bytes: u64) -> Vec<u8> {
    let mut index = b"MMIDIDX\0\0".to_vec();
    index.extend(1_u64.to_le_bytes());
    index.push(dtype);
    index.extend([3_u64, 3].iter().flat_map(|count| count.to_le_bytes()));
    index.extend([3_i32, 2, 2].iter().flat_map(|length| length.to_le_bytes()));
    index.extend([0, 3, 5].iter().flat_map(|token| (token * size_bytes).to_le_bytes()));
    index.extend([0_u64, 2, 3].iter().flat_map(|mark| mark.to_le_bytes()));
    index
}

fn check(path: &Path) -> Source {
    let source = Source::open(path).unwrap();
    assert_eq!(source.num_tokens(), 7, "{}", path.display());
    let mut ids = [0; 7];
    source.read(0, &mut ids).unwrap();
    assert_eq!(ids, IDS, "{}", path.display());
    source.read(2, &mut ids[..3]).unwrap();
    assert_eq!(ids[..3], IDS[2..5]);
    assert!(source.read(5, &mut ids).unwrap_err().to_string().contains("has 7 tokens"));
    source.verify().unwrap();
    source
}

fn refusal(path: &Path) -> String {
    Source::open(path).unwrap_err().to_string()
}

#[test]
fn every_format_is_told_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own.tokens");
    let mut writer = TokenWriter::create(&own, 1000).unwrap();
    writer.write(&IDS).unwrap();
    writer.finish().unwrap();
    check(&own);
    check(&write(&folder, "nano.bin", &u16_ids()));
    check(&write(&folder, "llmc.bin", &llm_c(20_240_520, 1, 7, &u16_ids())));
    let wide = ids_as(u32::to_le_bytes);
    check(&write(&folder, "llama3.bin", &llm_c(20_240_801, 7, 7, &wide)));
    check(&write(&folder, "a.npy", &npy("<u2", "(7,)", &u16_ids())));
    check(&write(&folder, "b.npy", &npy("<i4", "(7,)", &wide)));
    check(&write(&folder, "c.npy", &npy("<i8", "(7,)", &ids_as(|id| u64::from(id).to_le_bytes()))));
    for (dtype, bytes) in [(8, u16_ids()), (4, wide)] {
        let name = format!("megatron{dtype}");
        let bin = write(&folder, &format!("{name}.bin"), &bytes);
        let idx =
            write(&folder, &format!("{name}.idx"), &megatron_index(dtype, bytes.len() as u64 / 7));
        for path in [&bin, &idx, &folder.path().join(&name)] {
            let source = check(path);
            assert_eq!(source.num_documents(), Some(2));
            assert_eq!((source.document(0).unwrap(), source.document(1).unwrap()), (0..5, 5..7));
            let found: Vec<_> = (0..7).map(|token| source.document_at(token).unwrap()).collect();
            assert_eq!(found, [0, 0, 0, 0, 0, 1, 1]);
            assert!(source.document(2).unwrap_err().to_string().contains("document 2 was asked"));
            let stats = source.stats(4).unwrap();
            assert_eq!((stats.min_tokens, stats.max_tokens), (2, 5));
            assert_eq!((stats.num_longer_than_context, stats.by_length), (1, vec![0, 1, 1]));
        }
    }
}

#[test]
fn the_place_of_a_token_is_where_it_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "llmc.bin", &llm_c(20_240_520, 1, 7, &u16_ids()));
    let place = Source::open(&path).unwrap().place(3);
    assert_eq!((&place.file, place.byte), (&path, 1024 + 6));
    let message = Source::open(&path).unwrap().document(0).unwrap_err().to_string();
    assert!(message.contains("has no document index"), "{message}");
}

#[test]
fn ids_outside_the_vocabulary_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "nano.bin", &u16_ids());
    let options = SourceOptions { vocab_size: Some(500), format: None };
    let source = Source::open_with(&path, &options).unwrap();
    assert_eq!(source.vocab_size(), 500);
    let message = source.read(0, &mut [0; 3]).unwrap_err().to_string();
    assert!(message.contains("byte 2: token id 999 is outside the vocabulary of 500"), "{message}");
    assert!(source.verify().is_err());
    let negative = npy("<i8", "(1,)", &(-1_i64).to_le_bytes());
    let source = Source::open(write(&folder, "n.npy", &negative)).unwrap();
    assert!(source.read(0, &mut [0]).unwrap_err().to_string().contains("id 4294967295"));
}

#[test]
fn damage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("odd.bin", vec![1, 2, 3], "3 bytes"),
        ("short.bin", llm_c(20_240_520, 1, 9, &u16_ids()), "1038 bytes, and 9 tokens"),
        ("header.bin", llm_c(20_240_520, 1, 7, &[])[..100].to_vec(), "no header of llm.c"),
        ("float.npy", npy("<f4", "(7,)", &[0; 28]), "its dtype is `<f4`"),
        ("two.npy", npy("<u2", "(7, 1)", &u16_ids()), "not one-dimensional"),
        ("cut.npy", npy("<u2", "(7,)", &u16_ids())[..40].to_vec(), "header is cut off"),
        ("short.npy", npy("<u2", "(8,)", &u16_ids()), "8 tokens of 2 bytes"),
        ("text.txt", b"no tokens at all, but a text that is longer than a header".to_vec(), "end"),
    ];
    for (name, bytes, words) in cases {
        let message = refusal(&write(&folder, name, &bytes));
        assert!(message.contains(words) && message.contains(name), "{message}");
    }
    assert!(refusal(folder.path()).contains("no manifest.json"));
    assert!(refusal(&folder.path().join("gone")).contains("No such file"));
    assert!(refusal(&write(&folder, "empty.bin", &[])).contains("is empty"));
    write(&folder, "m.bin", &u16_ids());
    for (index, words) in [
        (megatron_index(7, 2), "dtype 7 is none of integers"),
        (megatron_index(8, 4), "tokens of 2 bytes"),
        (megatron_index(8, 2)[..60].to_vec(), "60 bytes, and 3 sequences"),
        (
            b"something else that is long enough for a header".to_vec(),
            "does not begin with MMIDIDX",
        ),
    ] {
        write(&folder, "m.idx", &index);
        let message = refusal(&folder.path().join("m.bin"));
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn a_changed_source_has_another_fingerprint() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "nano.bin", &u16_ids());
    let fingerprint = Source::open(&path).unwrap().fingerprint();
    Source::open(&path).unwrap().expect_fingerprint(fingerprint).unwrap();
    let other =
        write(&folder, "other.bin", &u16_ids().iter().map(|byte| byte ^ 1).collect::<Vec<_>>());
    let message =
        Source::open(other).unwrap().expect_fingerprint(fingerprint).unwrap_err().to_string();
    assert!(message.contains("other.bin` was changed"), "{message}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        start in prop::sample::select(vec!["", "\x13NUMPY\x01", "GROVETOK"]),
        name in prop::sample::select(vec!["a.bin", "a.npy", "a"]),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut content = start.as_bytes().to_vec();
        if start.contains("NUMPY") {
            content[0] = 0x93;
        }
        content.extend(bytes);
        if let Ok(source) = Source::open(write(&folder, name, &content)) {
            let _ = source.read(0, &mut vec![0; source.num_tokens() as usize]);
        }
    }

    #[test]
    fn damaged_indices_never_panic(changes in prop::collection::vec((0_usize..94, any::<u8>()), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let path = write(&folder, "m.bin", &u16_ids());
        let mut index = megatron_index(8, 2);
        changes.into_iter().for_each(|(at, byte)| index[at] = byte);
        write(&folder, "m.idx", &index);
        if let Ok(source) = Source::open(path) {
            for document in 0..source.num_documents().unwrap() {
                let _ = source.document(document);
            }
            for token in 0..source.num_tokens() {
                let _ = source.document_at(token);
            }
        }
    }
}
