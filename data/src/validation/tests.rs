//! Validation windows follow each other, and the ragged end is left out.

use super::*;
use crate::loader::tests::counting_file;

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
