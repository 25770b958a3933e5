//! Micro-batches are a pure function of (seed, step, index), and refuse what does not exist.

use std::collections::BTreeSet;

use tempfile::TempDir;

use super::*;
use crate::token_file::{TokenFile, TokenWriter};

/// A file whose token number `i` is `i`, so that a batch shows where it was read.
pub(crate) fn counting_file(num_tokens: u32) -> (TempDir, Arc<TokenFile>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counting.bin");
    let mut writer = TokenWriter::create(&path, 100_000).unwrap();
    writer.write(&(0..num_tokens).collect::<Vec<u32>>()).unwrap();
    writer.finish().unwrap();
    (folder, Arc::new(TokenFile::open(path).unwrap()))
}

/// A counting file whose token `bad` is outside the vocabulary.
pub(crate) fn damaged_file(num_tokens: u32, bad: u32) -> (TempDir, Arc<TokenFile>) {
    let (folder, file) = counting_file(num_tokens);
    let path = file.path().to_owned();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[64 + 4 * bad as usize + 3] = 0xff;
    // Under another name, because the old file is mapped.
    let path = path.with_extension("damaged");
    std::fs::write(&path, bytes).unwrap();
    (folder, Arc::new(TokenFile::open(path).unwrap()))
}

pub(crate) fn small_config() -> LoaderConfig {
    LoaderConfig { sequence_length: 8, micro_batch_size: 3, micro_batches_per_step: 4, seed: 7 }
}

#[test]
fn rows_are_the_windows_of_the_order() {
    let (_folder, file) = counting_file(2000);
    let loader = Loader::new(file, 100..1900, small_config()).unwrap();
    for (step, index) in [(0, 0), (0, 3), (5, 2), (1000, 1)] {
        let batch = loader.micro_batch(step, index).unwrap();
        assert_eq!((batch.batch_size, batch.sequence_length), (3, 8));
        assert_eq!(batch.tokens.len(), 3 * 9);
        for (row, tokens) in batch.tokens.chunks(9).enumerate() {
            let sample = (step * 4 + index) * 3 + row as u64;
            let start = 100 + loader.order().start(sample) as u32;
            assert!(tokens.iter().copied().eq(start..start + 9), "step {step}: {tokens:?}");
            assert!(tokens[8] < 1900, "tokens outside the range: {tokens:?}");
        }
    }
}

#[test]
fn batches_do_not_depend_on_what_was_read_before() {
    let (_folder, file) = counting_file(2000);
    let loader = Loader::new(file.clone(), 0..2000, small_config()).unwrap();
    let places = [(3, 1), (0, 0), (77, 3), (0, 0)];
    let batches = places.map(|(step, index)| loader.micro_batch(step, index).unwrap());
    let fresh = |(step, index): (u64, u64)| {
        let loader = Loader::new(file.clone(), 0..2000, small_config()).unwrap();
        loader.micro_batch(step, index).unwrap()
    };
    assert_eq!(batches, places.map(fresh));
    let other = LoaderConfig { seed: 8, ..small_config() };
    let other = Loader::new(file, 0..2000, other).unwrap();
    assert_ne!(batches[0], other.micro_batch(3, 1).unwrap());
}

#[test]
fn an_epoch_shows_each_window_once() {
    let (_folder, file) = counting_file(12 * 8 + 8);
    let loader = Loader::new(file, 0..104, small_config()).unwrap();
    assert_eq!(loader.order().num_windows(), 12);
    let mut firsts = BTreeSet::new();
    for index in 0..4 {
        firsts.extend(loader.micro_batch(0, index).unwrap().tokens.chunks(9).map(|row| row[0]));
    }
    assert_eq!(firsts.len(), 12);
}

#[test]
fn what_cannot_be_is_refused() {
    let (_folder, file) = counting_file(100);
    let refused = |range, config| Loader::new(file.clone(), range, config).unwrap_err().to_string();
    let message = refused(0..101, small_config());
    assert!(message.contains("tokens 0..101") && message.contains("has 100 tokens"), "{message}");
    let message = refused(0..8, small_config());
    assert!(message.contains("8 + 1 > 8"), "{message}");
    let zeros = [
        ("micro_batch_size", LoaderConfig { micro_batch_size: 0, ..small_config() }),
        ("micro_batches_per_step", LoaderConfig { micro_batches_per_step: 0, ..small_config() }),
        ("sequence_length", LoaderConfig { sequence_length: 0, ..small_config() }),
    ];
    for (key, config) in zeros {
        assert_eq!(refused(0..100, config), format!("{key} is 0, expected at least 1"));
    }
    let loader = Loader::new(file.clone(), 0..100, small_config()).unwrap();
    let message = loader.micro_batch(0, 4).unwrap_err().to_string();
    assert_eq!(message, "micro-batch 4 was asked for, but there are 4 (0..4)");
    let message = loader.micro_batch(u64::MAX / 4, 0).unwrap_err().to_string();
    assert!(message.contains("overflows the sample counter"), "{message}");
}
