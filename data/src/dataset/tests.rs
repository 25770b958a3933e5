//! Damage to a document index and a manifest is named.

use std::fs;
use std::io::Write as _;

use super::*;
use crate::Source;
use crate::error::Error;
use crate::packing::tests::shards_of;

/// Changes a file of a good folder and returns why it is refused.
fn refusal(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let (_folder, source) = shards_of(&[10; 50]);
    let path = source.path().join(name);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    // Under a new inode, because the old file is mapped.
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let outcome = Source::open(source.path()).and_then(|source| source.verify());
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains(name), "{message}");
    message
}

#[test]
fn damaged_folders_are_refused() {
    let documents = "shard-00001.documents";
    for (message, words) in [
        (refusal(documents, |bytes| bytes.truncate(30)), "inside its header"),
        (refusal(documents, |bytes| bytes.truncate(100)), "need"),
        (refusal(documents, |bytes| bytes[0] = 0), "no document index of version 1"),
        (refusal(documents, |bytes| bytes[17] ^= 1), "checksum of its header"),
        (refusal(documents, |bytes| bytes[70] ^= 1), "checksum of its entries"),
        (refusal("shard-00001.tokens", |bytes| bytes.truncate(80)), "truncated"),
        (refusal("shard-00000.tokens", |bytes| bytes[70] ^= 1), "checksum of the token bytes"),
        (refusal("manifest.json", |bytes| bytes.truncate(50)), "EOF"),
    ] {
        assert!(message.contains(words), "{words:?} is not in {message:?}");
    }
    let (_folder, source) = shards_of(&[10; 50]);
    let manifest = Manifest::read(source.path()).unwrap();
    assert_eq!(manifest.shards.len(), 5);
    fs::remove_file(source.path().join("shard-00002.tokens")).unwrap();
    let message = Source::open(source.path()).unwrap_err().to_string();
    assert!(message.contains("shard-00002.tokens") && message.contains("No such file"));
}

#[test]
fn a_full_disk_is_named() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let cause = full.unwrap().write_all(b"x").unwrap_err();
    let path = std::path::Path::new("out/shard-00000.documents");
    let message = Error::write(path, 4096)(cause).to_string();
    assert!(message.contains("no space left") && message.contains("shard-00000.documents"));
}
