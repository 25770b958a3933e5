//! Byte-pair encoding of one word: the merge with the lowest rank first, leftmost among equals.
//!
//! Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword Units"
//! (arXiv 1508.07909), section 3.2, on bytes as in Radford et al. 2019 (GPT-2), section 2.2.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Words of up to this many bytes are merged by scanning, longer ones with a heap. A scan costs
/// the square of the length, but has no set-up.
const MAX_SCAN_BYTES: usize = 96;
const NO_MERGE: u64 = u64::MAX;

/// Which pairs of ids merge, in which order, into what.
#[derive(Clone, Debug)]
pub(super) struct Merges {
    /// The id of each byte.
    byte_ids: [u32; 256],
    pairs: PairTable,
    /// Whole words that are taken as they are, before any merge; `None` where that is not done.
    whole: Option<BTreeMap<Box<[u8]>, u32>>,
}

impl Merges {
    /// `pairs` are (left, right, rank, merged), at most one a pair.
    pub(super) fn new(
        byte_ids: [u32; 256],
        pairs: &[(u32, u32, u32, u32)],
        whole: Option<BTreeMap<Box<[u8]>, u32>>,
    ) -> Self {
        let mut table = PairTable::with_room_for(pairs.len());
        for &(left, right, rank, merged) in pairs {
            table.insert(key(left, right), u64::from(rank) << 32 | u64::from(merged));
        }
        Self { byte_ids, pairs: table, whole }
    }

    /// Appends the ids of a word. `work` is scratch space.
    pub(super) fn encode(&self, word: &[u8], work: &mut Work, ids: &mut Vec<u32>) {
        if let Some(&id) = self.whole.as_ref().and_then(|whole| whole.get(word)) {
            ids.push(id);
        } else if word.len() <= MAX_SCAN_BYTES {
            self.scan(word, work, ids);
        } else {
            self.heap(word, ids);
        }
    }

    /// Rank (high half) and merged id (low half) of two neighbors.
    fn pair(&self, left: u32, right: u32) -> u64 {
        self.pairs.get(key(left, right))
    }

    fn scan(&self, word: &[u8], work: &mut Work, ids: &mut Vec<u32>) {
        let Work { parts, ranks } = work;
        parts.clear();
        parts.extend(word.iter().map(|&byte| self.byte_ids[usize::from(byte)]));
        ranks.clear();
        ranks.extend(parts.windows(2).map(|pair| self.pair(pair[0], pair[1])));
        // The rank is the high half, and ranks differ between pairs, so the first minimum is the
        // leftmost occurrence of the best pair.
        while let Some((at, &best)) = ranks.iter().enumerate().min_by_key(|&(_, rank)| rank) {
            if best == NO_MERGE {
                break;
            }
            parts[at] = best as u32;
            parts.remove(at + 1);
            ranks.remove(at);
            if at < ranks.len() {
                ranks[at] = self.pair(parts[at], parts[at + 1]);
            }
            if at > 0 {
                ranks[at - 1] = self.pair(parts[at - 1], parts[at]);
            }
        }
        ids.extend_from_slice(parts);
    }

    fn heap(&self, word: &[u8], ids: &mut Vec<u32>) {
        const GONE: u32 = u32::MAX;
        let mut parts: Vec<u32> =
            word.iter().map(|&byte| self.byte_ids[usize::from(byte)]).collect();
        let len = parts.len();
        let mut next: Vec<usize> = (1..=len).collect();
        let mut previous: Vec<usize> = (0..len).map(|at| at.wrapping_sub(1)).collect();
        let mut waiting: BinaryHeap<Reverse<(u64, usize)>> = (0..len - 1)
            .map(|at| Reverse((self.pair(parts[at], parts[at + 1]), at)))
            .filter(|&Reverse((best, _))| best != NO_MERGE)
            .collect();
        while let Some(Reverse((best, at))) = waiting.pop() {
            // An entry is out of date when one of its two parts has been merged since.
            let right = next[at];
            if parts[at] == GONE || right == len || self.pair(parts[at], parts[right]) != best {
                continue;
            }
            parts[at] = best as u32;
            parts[right] = GONE;
            next[at] = next[right];
            if next[at] < len {
                previous[next[at]] = at;
            }
            for left in [previous[at], at] {
                if left >= len || next[left] >= len {
                    continue;
                }
                let pair = self.pair(parts[left], parts[next[left]]);
                if pair != NO_MERGE {
                    waiting.push(Reverse((pair, left)));
                }
            }
        }
        ids.extend(parts.into_iter().filter(|&id| id != GONE));
    }
}

/// Scratch space of [`Merges::encode`].
#[derive(Debug, Default)]
pub(super) struct Work {
    parts: Vec<u32>,
    ranks: Vec<u64>,
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Open addressing with linear probing; half full at most. Ids are below 2^32 - 1, so a key of
/// all ones is free to mean an empty slot.
#[derive(Clone, Debug)]
struct PairTable {
    slots: Vec<(u64, u64)>,
    shift: u32,
}

impl PairTable {
    fn with_room_for(len: usize) -> Self {
        let capacity = (2 * len).next_power_of_two().max(2);
        Self { slots: vec![(u64::MAX, NO_MERGE); capacity], shift: 64 - capacity.ilog2() }
    }

    /// The slot of `key`, or the empty one where it would go.
    fn slot(&self, key: u64) -> usize {
        // Fibonacci hashing (Knuth, The Art of Computer Programming 3, section 6.4).
        let mut slot = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        loop {
            let found = self.slots[slot].0;
            if found == key || found == u64::MAX {
                return slot;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    fn insert(&mut self, key: u64, value: u64) {
        let slot = self.slot(key);
        self.slots[slot] = (key, value);
    }

    fn get(&self, key: u64) -> u64 {
        self.slots[self.slot(key)].1
    }
}
