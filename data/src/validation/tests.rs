//! Validation windows follow each other, and the ragged end is left out.

use super::*;
use crate::loader::tests::counting_file;
use crate::packing::tests::{mixed_lengths, shards_of};

#[test]
fn windows_follow_each_other_and_share_no_target() {
    let (_folder, file) = counting_file(200);
    // 99 tokens after the first hold 12 windows of 8, which are 2 batches of 5.
    let validation = Validation::new(file.into(), 100..200, 8, 5).unwrap();
    assert_eq!(validation.num_batches(), 2);
    let mut targets = Vec::new();
    for index in 0..2 {
        let batch = validation.batch(index).unwrap();
        assert_eq!((batch.batch_size, batch.sequence_length), (5, 8));
        batch.tokens.chunks(9).for_each(|row| targets.extend_from_slice(&row[1..]));
    }
    assert!(targets.into_iter().eq(101..181));
    let message = validation.batch(2).unwrap_err().to_string();
    assert_eq!(message, "validation batch 2 was asked for, but there are 2 (0..2)");
}

#[test]
fn the_smallest_range_is_one_batch() {
    let (_folder, file) = counting_file(41);
    assert_eq!(Validation::new(file.clone().into(), 0..41, 8, 5).unwrap().num_batches(), 1);
    let message = Validation::new(file.clone().into(), 0..40, 8, 5).unwrap_err().to_string();
    assert!(message.contains("5 * 8 + 1 > 40") && message.contains("raise"), "{message}");
    assert!(Validation::new(file.clone().into(), 41..41, 8, 5).is_err());
    assert!(Validation::new(file.clone().into(), 0..42, 8, 5).is_err());
    let message = Validation::new(file.into(), 0..41, 8, 0).unwrap_err().to_string();
    assert_eq!(message, "micro_batch_size is 0, expected at least 1");
}

#[test]
fn windows_cut_at_documents_hold_the_same_tokens() {
    let (_folder, source) = shards_of(&mixed_lengths(40));
    let num_tokens = source.num_tokens();
    let whole = Validation::new(source.clone(), 10..num_tokens, 16, 3).unwrap();
    let cut = whole.clone().cut_at_documents().unwrap();
    assert_eq!(cut.num_batches(), whole.num_batches());
    for index in 0..cut.num_batches() {
        let (batch, expected) = (cut.batch(index).unwrap(), whole.batch(index).unwrap());
        assert_eq!(batch.tokens, expected.tokens);
        let mask = batch.loss_mask.unwrap();
        for (input, counts) in mask.into_iter().enumerate() {
            let token = |at: usize| 10 + (index as usize * 48 + at) as u64;
            let starts = batch.segment_starts.contains(&(input as u32));
            let document = |at| source.document_at(token(at)).unwrap();
            let begins = input % 16 == 0 || document(input) != document(input - 1);
            assert_eq!(starts, begins, "input {input} of batch {index}");
            assert_eq!(counts, document(input + 1) == document(input), "target {input}");
        }
    }
    let (_file, plain) = counting_file(200);
    let message = Validation::new(plain.into(), 0..200, 8, 1).unwrap().cut_at_documents();
    assert!(message.unwrap_err().to_string().contains("document"));
}
