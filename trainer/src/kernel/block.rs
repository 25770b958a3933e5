//! Cuts tensors into blocks of rows, which the threads of a pool claim one by one.

use std::sync::{Mutex, PoisonError};

#[cfg(test)]
mod tests;

/// About how many elements a block of rows holds: enough to hide the cost of claiming it, few enough
/// to share among many threads.
const BLOCK_ELEMENTS: usize = 32 * 1024;

/// How many rows of `row_len` elements make a block, where rows do not depend on each other.
pub(super) fn rows_per_block(row_len: usize) -> usize {
    (BLOCK_ELEMENTS / row_len.max(1)).max(1)
}

/// At most this many partial sums are added up after a reduction over rows. More would cost memory,
/// fewer would leave threads of a large machine idle.
const MAX_PARTIALS: usize = 64;

/// A partial sum takes in at least this many rows, so that adding up partial sums stays cheap.
const MIN_ROWS_PER_PARTIAL: usize = 16;

/// How many rows go into one partial sum of a reduction over `num_rows` rows.
///
/// A function of the number of rows alone, so that the order of additions, and so each bit of the
/// sum, is the same for every number of threads.
pub(super) fn rows_per_partial(num_rows: usize) -> usize {
    num_rows.div_ceil(MAX_PARTIALS).max(MIN_ROWS_PER_PARTIAL)
}

/// The blocks of a mutable slice, each of which can be taken once, by any thread.
pub(super) struct Blocks<'a, T> {
    blocks: Vec<Mutex<Option<&'a mut [T]>>>,
}

impl<'a, T> Blocks<'a, T> {
    /// Cuts `items` into blocks of `block_len`; the last one may be shorter.
    pub(super) fn new(items: &'a mut [T], block_len: usize) -> Self {
        Self { blocks: items.chunks_mut(block_len.max(1)).map(|b| Mutex::new(Some(b))).collect() }
    }

    /// Cuts `items` into blocks of the given lengths, which add up to its length at most.
    pub(super) fn with_lens(mut items: &'a mut [T], lens: impl Iterator<Item = usize>) -> Self {
        let mut blocks = Vec::new();
        for len in lens {
            let (block, rest) = items.split_at_mut(len);
            blocks.push(Mutex::new(Some(block)));
            items = rest;
        }
        Self { blocks }
    }

    /// How many blocks there are.
    pub(super) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The block `index`.
    ///
    /// # Panics
    /// If it was taken before, or does not exist.
    pub(super) fn take(&self, index: usize) -> &'a mut [T] {
        let mut block = self.blocks[index].lock().unwrap_or_else(PoisonError::into_inner);
        block.take().expect("each block is taken once")
    }
}

/// The part of `items` that belongs to block `index` of blocks of `block_len`.
pub(super) fn block<T>(items: &[T], index: usize, block_len: usize) -> &[T] {
    let start = index * block_len;
    &items[start..items.len().min(start + block_len)]
}
