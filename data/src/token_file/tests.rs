//! Round trips, each refusal with its message, and arbitrary bytes.

use std::fs;
use std::hash::Hasher as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A token file of these ids in `folder`.
fn written(folder: &TempDir, vocab_size: u32, ids: &[u32]) -> PathBuf {
    let path = folder.path().join("tokens.bin");
    let mut writer = TokenWriter::create(&path, vocab_size).unwrap();
    writer.write(ids).unwrap();
    writer.finish().unwrap();
    path
}

fn names_in(folder: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Changes a good file's bytes and checks that opening is refused with these words.
fn check_refusal(change: impl FnOnce(&mut Vec<u8>), words: &[&str]) {
    let folder = folder();
    let path = written(&folder, 1000, &[1, 2, 999]);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let message = TokenFile::open(&path).unwrap_err().to_string();
    for word in words.iter().copied().chain([path.to_str().unwrap()]) {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

/// Changes the header, gives it a valid checksum again, and checks the refusal.
fn check_header_refusal(at: usize, field: &[u8], words: &[&str]) {
    let change = |bytes: &mut Vec<u8>| {
        bytes[at..at + field.len()].copy_from_slice(field);
        let mut hash = XxHash3_64::new();
        hash.write(&bytes[..56]);
        bytes[56..64].copy_from_slice(&hash.finish().to_le_bytes());
    };
    check_refusal(change, words);
}

#[test]
fn what_is_written_is_read_in_the_narrowest_dtype() {
    let cases = [
        (2, TokenDtype::U8, 1),
        (256, TokenDtype::U8, 1),
        (257, TokenDtype::U16, 2),
        (65_536, TokenDtype::U16, 2),
        (65_537, TokenDtype::U32, 4),
        (u32::MAX, TokenDtype::U32, 4),
    ];
    for (vocab_size, dtype, size_bytes) in cases {
        let folder = folder();
        let ids: Vec<u32> = (0..1003).map(|i| (i * 2_654_435) % vocab_size).collect();
        let ids = [ids.as_slice(), &[vocab_size - 1]].concat();
        let path = written(&folder, vocab_size, &ids);
        let file = TokenFile::open(&path).unwrap();
        assert_eq!((file.dtype(), file.vocab_size()), (dtype, vocab_size));
        assert_eq!(file.num_tokens(), ids.len() as u64);
        assert_eq!(fs::metadata(&path).unwrap().len(), 64 + size_bytes * ids.len() as u64);
        let mut read = vec![0; ids.len() - 3];
        file.read(3, &mut read).unwrap();
        assert_eq!(read, ids[3..]);
        file.read(ids.len() as u64, &mut []).unwrap();
        file.verify().unwrap();
    }
}

#[test]
fn the_header_is_laid_out_as_documented() {
    let folder = folder();
    let bytes = fs::read(written(&folder, 1000, &[1, 2, 999])).unwrap();
    assert_eq!(&bytes[..8], b"GROVETOK");
    assert_eq!(bytes[8..12], 1u32.to_le_bytes());
    assert_eq!(bytes[12..16], 2u32.to_le_bytes());
    assert_eq!(bytes[16..20], 1000u32.to_le_bytes());
    assert_eq!(bytes[24..32], 3u64.to_le_bytes());
    assert_eq!(bytes[32..40], XxHash3_64::oneshot(&bytes[64..]).to_le_bytes());
    assert_eq!(bytes[56..64], XxHash3_64::oneshot(&bytes[..56]).to_le_bytes());
    assert_eq!(bytes[64..], [1, 0, 2, 0, 0xe7, 3]);
}

#[test]
fn the_fingerprint_names_the_content() {
    let folder = folder();
    let open =
        |vocab_size, ids| TokenFile::open(written(&folder, vocab_size, ids)).unwrap().fingerprint();
    let fingerprint = open(1000, &[1, 2, 3]);
    assert_eq!(fingerprint, open(1000, &[1, 2, 3]));
    assert_ne!(fingerprint, open(1000, &[1, 2, 4]));
    assert_ne!(fingerprint, open(1001, &[1, 2, 3]));
    let mut writer = TokenWriter::create(folder.path().join("pieces.bin"), 1000).unwrap();
    writer.write(&[1]).unwrap();
    writer.write(&[2, 3]).unwrap();
    assert_eq!(writer.finish().unwrap(), fingerprint, "pieces or whole make no difference");
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = folder();
    let missing = TokenFile::open(folder.path().join("none.bin")).unwrap_err().to_string();
    assert!(missing.contains("none.bin") && missing.contains("No such file"), "{missing}");
    let message = TokenFile::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("is not a regular file"), "{message}");
}

#[test]
fn wrong_lengths_are_refused() {
    check_refusal(Vec::clear, &["is empty (0 bytes)"]);
    check_refusal(|bytes| bytes.truncate(63), &["ends at byte 63, inside the 64-byte header"]);
    check_refusal(|bytes| bytes.truncate(69), &["truncated", "ends at byte 69", "at byte 70"]);
    check_refusal(|bytes| bytes.push(0), &["too long", "ends at byte 71", "at byte 70"]);
    let enormous = u64::MAX.to_le_bytes();
    check_header_refusal(24, &enormous, &["truncated", "36893488147419103294"]);
}

#[test]
fn wrong_headers_are_refused() {
    let foreign = ["byte 0: magic is \"\\x89PNG\\r\\n\\x1a\\n\", expected \"GROVETOK\""];
    check_header_refusal(0, b"\x89PNG\r\n\x1a\n", &foreign);
    check_header_refusal(8, &[2], &["byte 8: version is 2, expected 1"]);
    check_header_refusal(12, &[3], &["byte 12: dtype is 3, expected 1 (u8), 2 (u16) or 4 (u32)"]);
    check_header_refusal(12, &[1], &["byte 16: vocab_size is 1000, expected 1 to 256"]);
    check_header_refusal(16, &[0; 4], &["byte 16: vocab_size is 0, expected 1 to 65536"]);
    check_header_refusal(24, &[0; 8], &["byte 24: num_tokens is 0, expected at least 1"]);
    check_header_refusal(22, &[1], &["byte 22: reserved byte is 0x01, expected 0"]);
    check_header_refusal(55, &[1], &["byte 55: reserved byte is 0x01, expected 0"]);
    let damage = |bytes: &mut Vec<u8>| bytes[16] ^= 1;
    check_refusal(damage, &["byte 56: header checksum is", "the header is damaged"]);
}

#[test]
fn an_id_outside_the_vocabulary_is_found_while_reading() {
    for (vocab_size, bad_byte) in [(200, 64 + 5), (1000, 64 + 11), (70_000, 64 + 23)] {
        let folder = folder();
        let path = written(&folder, vocab_size, &[7; 10]);
        let mut bytes = fs::read(&path).unwrap();
        // The highest byte of token 5, whatever the dtype.
        bytes[bad_byte] = 0xff;
        fs::write(&path, bytes).unwrap();
        let file = TokenFile::open(&path).unwrap();
        let mut out = [0; 4];
        file.read(0, &mut out).unwrap();
        let message = file.read(4, &mut out).unwrap_err().to_string();
        let at = format!("byte {}: token id", 64 + 5 * file.dtype().size_bytes());
        assert!(message.contains(&at) && message.contains("tokens.bin"), "{message}");
        let message = file.verify().unwrap_err().to_string();
        assert!(message.contains("checksum of the token bytes"), "{message}");
    }
}

#[test]
fn reading_outside_the_file_is_refused() {
    let folder = folder();
    let file = TokenFile::open(written(&folder, 10, &[1, 2, 3])).unwrap();
    let message = file.read(2, &mut [0; 2]).unwrap_err().to_string();
    assert!(message.contains("tokens 2..4") && message.contains("has 3 tokens"), "{message}");
    assert!(file.read(u64::MAX, &mut [0; 2]).is_err());
}

#[test]
fn an_unfinished_file_leaves_nothing() {
    let folder = folder();
    let path = folder.path().join("tokens.bin");
    let mut writer = TokenWriter::create(&path, 10).unwrap();
    writer.write(&[1, 2, 3]).unwrap();
    assert_eq!(names_in(&folder).len(), 1);
    assert!(!path.exists(), "nothing may appear under the name before finish");
    drop(writer);
    assert!(names_in(&folder).is_empty(), "{:?}", names_in(&folder));
}

#[test]
fn the_writer_refuses_what_cannot_be_read_back() {
    let folder = folder();
    let path = folder.path().join("tokens.bin");
    let mut writer = TokenWriter::create(&path, 10).unwrap();
    writer.write(&[9]).unwrap();
    let message = writer.write(&[1, 10]).unwrap_err().to_string();
    assert!(message.contains("token 2: id 10 is outside the vocabulary of 10"), "{message}");
    let empty = TokenWriter::create(&path, 10).unwrap().finish().unwrap_err().to_string();
    assert!(empty.contains("0 tokens"), "{empty}");
    let zero = TokenWriter::create(&path, 0).err().unwrap().to_string();
    assert_eq!(zero, "vocab_size is 0, expected at least 1");
    let nowhere = TokenWriter::create(folder.path().join("no/tokens.bin"), 10).err().unwrap();
    assert!(nowhere.to_string().contains("no/tokens.bin"), "{nowhere}");
}

#[test]
fn a_published_file_replaces_the_old_one_and_others_can_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let old = TokenFile::open(written(&folder, 10, &[1, 2, 3])).unwrap();
    let path = written(&folder, 10, &[4, 5]);
    let mut out = [0; 3];
    old.read(0, &mut out).unwrap();
    assert_eq!(out, [1, 2, 3], "who has the old file open still reads the old tokens");
    assert_eq!(TokenFile::open(&path).unwrap().num_tokens(), 2);
    assert_eq!(names_in(&folder), ["tokens.bin"]);
    let plain = folder.path().join("plain");
    fs::write(&plain, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&plain));
}

#[test]
fn a_full_disk_is_named() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let cause = full.unwrap().write_all(b"x").unwrap_err();
    let message = Error::write(Path::new("out.bin"), 4096)(cause).to_string();
    assert!(message.starts_with("no space left on the disk of `out.bin` after 4096 bytes"));
    assert!(message.contains("free space or choose another output path"), "{message}");
}

#[test]
fn opening_does_not_read_the_tokens() {
    // The goal for a file of 100 billion tokens, which this one has, as a hole.
    const MAX_OPEN: Duration = Duration::from_millis(100);
    let folder = folder();
    let path = written(&folder, 256, &[1, 2, 3]);
    let num_tokens = 100_000_000_000;
    let header = Header { dtype: TokenDtype::U8, vocab_size: 256, num_tokens, payload_checksum: 0 };
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(&header.encode()).unwrap();
    file.set_len(64 + num_tokens).unwrap();
    let start = Instant::now();
    let file = TokenFile::open(&path).unwrap();
    assert!(start.elapsed() < MAX_OPEN, "{:?}", start.elapsed());
    let mut out = [7; 2];
    file.read(num_tokens - 2, &mut out).unwrap();
    assert_eq!(out, [0, 0]);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = folder();
        let path = folder.path().join("tokens.bin");
        fs::write(&path, bytes).unwrap();
        prop_assert!(TokenFile::open(&path).is_err());
    }

    /// Damage after a valid start gets past the first checks, so it reaches the later ones.
    #[test]
    fn damaged_bytes_never_panic(
        changes in prop::collection::vec((0usize..80, any::<u8>()), 1..4),
        len in 0usize..90,
    ) {
        let folder = folder();
        let path = written(&folder, 1000, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let mut bytes = fs::read(&path).unwrap();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes.resize(len, 0);
        fs::write(&path, bytes).unwrap();
        if let Ok(file) = TokenFile::open(&path) {
            let mut out = vec![0; file.num_tokens() as usize];
            if file.read(0, &mut out).is_ok() {
                prop_assert!(out.iter().all(|&id| id < file.vocab_size()));
            }
        }
    }
}
