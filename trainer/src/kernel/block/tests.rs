//! Blocks cover a slice once, and the partition of a reduction depends on rows alone.

use super::{Blocks, block, rows_per_block, rows_per_partial};

#[test]
fn blocks_cover_the_slice() {
    let mut items: Vec<usize> = vec![0; 10];
    let blocks = Blocks::new(&mut items, 4);
    assert_eq!(blocks.num_blocks(), 3);
    for index in [2, 0, 1] {
        blocks.take(index).iter_mut().for_each(|item| *item = index);
    }
    drop(blocks);
    assert_eq!(items, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]);
    assert_eq!(block(&items, 2, 4), [2, 2]);
}

#[test]
fn blocks_of_given_lengths_may_be_empty() {
    let mut items = [1, 2, 3];
    let blocks = Blocks::with_lens(&mut items, [1, 0, 2].into_iter());
    assert_eq!(blocks.take(0), [1]);
    assert!(blocks.take(1).is_empty());
    assert_eq!(blocks.take(2), [2, 3]);
}

#[test]
fn a_block_is_taken_once() {
    let mut items = [1, 2, 3];
    let blocks = Blocks::new(&mut items, 2);
    let _first = blocks.take(0);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| blocks.take(0))).is_err());
}

#[test]
fn sizes_of_blocks() {
    assert_eq!(rows_per_block(1 << 20), 1);
    assert_eq!(rows_per_block(1024), 32);
    assert_eq!(rows_per_partial(1), 16);
    assert_eq!(rows_per_partial(64 * 100), 100);
}
