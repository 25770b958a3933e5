//! Where the border between training and validation lies.

use std::sync::Arc;

use super::*;
use crate::loader::tests::counting_file;
use crate::token_file::TokenFile;

#[test]
fn validation_is_the_last_part() {
    let (_folder, file) = counting_file(1005);
    let corpus = Corpus::from_one_file(file, 0.1).unwrap();
    assert_eq!(corpus.part(Split::Train).range, 0..905);
    assert_eq!(corpus.part(Split::Validation).range, 905..1005);
}

#[test]
fn no_validation_is_an_empty_part() {
    let (_folder, file) = counting_file(10);
    let corpus = Corpus::from_one_file(file, 0.0).unwrap();
    assert_eq!(corpus.part(Split::Train).range, 0..10);
    assert!(corpus.part(Split::Validation).range.is_empty());
}

#[test]
fn what_is_no_fraction_is_refused() {
    let (_folder, file) = counting_file(10);
    for fraction in [-0.1, 1.0, f64::NAN] {
        let message = Corpus::from_one_file(file.clone(), fraction).unwrap_err().to_string();
        assert!(message.contains("expected 0 <= validation_fraction < 1"), "{message}");
    }
}

#[test]
fn two_files_are_whole_parts_of_one_vocabulary() {
    let (_folder, train) = counting_file(10);
    let (folder, validation) = counting_file(7);
    let corpus = Corpus::from_two_files(train.clone(), validation).unwrap();
    assert_eq!(corpus.part(Split::Train).range, 0..10);
    assert_eq!(corpus.part(Split::Validation).range, 0..7);
    let path = folder.path().join("other.bin");
    let mut writer = crate::TokenWriter::create(&path, 10).unwrap();
    writer.write(&[1]).unwrap();
    writer.finish().unwrap();
    let other = Arc::new(TokenFile::open(path).unwrap());
    let message = Corpus::from_two_files(train, other).unwrap_err().to_string();
    assert!(message.contains("has vocab_size 100000") && message.contains("has 10"), "{message}");
}
