//! The data order: which tokens sample number `n` holds, as a pure function of the seed.
//!
//! Nothing is stored and nothing is shuffled in memory: a keyed bijection on the window numbers
//! is evaluated where it is needed, so a run resumes at any step, on any number of ranks, at no
//! cost.

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};

/// Four rounds make a Feistel network a strong pseudo-random permutation when the round function
/// is random (Luby and Rackoff 1988); twice that many make up for small domains.
const NUM_ROUNDS: usize = 8;

/// A keyed bijection on `0..len`, evaluated in constant time and memory.
///
/// A generalized Feistel network on `a * b >= len` points with cycle walking: Black and Rogaway
/// 2002, "Ciphers with Arbitrary Finite Domains", CT-RSA, sections 4 and 5. With
/// `a = ceil(sqrt(len))` and `b = ceil(len / a)` fewer than `a` points lie outside `0..len`, so a
/// value outside it, which is sent through again until it falls inside, is rare. The round
/// function is the finalizer of SplitMix64 (Steele, Lea and Flood 2014). This is a shuffle, not a
/// cipher.
#[derive(Clone, Debug)]
pub struct Permutation {
    len: u64,
    a: u64,
    b: u64,
    round_keys: [u64; NUM_ROUNDS],
}

impl Permutation {
    /// The bijection on `0..len` that belongs to `key`.
    pub fn new(len: u64, key: u64) -> Self {
        let floor = len.isqrt();
        let a = (floor + u64::from(floor * floor < len)).max(1);
        let b = len.div_ceil(a);
        let round_keys = std::array::from_fn(|round| hash_pair(key, round as u64));
        Self { len, a, b, round_keys }
    }

    /// Number of points.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no point.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The image of `index`.
    ///
    /// # Panics
    /// If `index >= len`.
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.len, "index {index} is outside 0..{}", self.len);
        // The network permutes 0..a*b, so the cycle through a point of 0..len leads back to it.
        let mut point = self.network(index);
        while point >= self.len {
            point = self.network(point);
        }
        point
    }

    /// The index whose image is `value`: the inverse of [`Permutation::at`].
    ///
    /// # Panics
    /// If `value >= len`.
    pub fn index_of(&self, value: u64) -> u64 {
        assert!(value < self.len, "value {value} is outside 0..{}", self.len);
        let mut point = self.inverse_network(value);
        while point >= self.len {
            point = self.inverse_network(point);
        }
        point
    }

    fn inverse_network(&self, point: u64) -> u64 {
        let (mut left, mut right) = (point % self.a, point / self.a);
        for (round, key) in self.round_keys.iter().enumerate().rev() {
            let modulus = if round % 2 == 0 { self.a } else { self.b };
            let shift = scale(mix(left ^ key), modulus);
            let before = if right >= shift { right - shift } else { right + modulus - shift };
            (left, right) = (before, left);
        }
        self.a * right + left
    }

    /// One pass over `0..a*b`. After an even number of rounds `left` is in `0..a` again.
    fn network(&self, point: u64) -> u64 {
        let (mut left, mut right) = (point % self.a, point / self.a);
        for (round, key) in self.round_keys.iter().enumerate() {
            let modulus = if round % 2 == 0 { self.a } else { self.b };
            let shift = scale(mix(right ^ key), modulus);
            // Both summands are below modulus <= 2^32, so this is their sum modulo it.
            let sum = left + shift;
            let next = if sum >= modulus { sum - modulus } else { sum };
            (left, right) = (right, next);
        }
        self.a * right + left
    }
}

/// Which windows of a token range make up sample 0, 1, 2, ... over any number of epochs.
///
/// With `N` tokens and sequence length `S`, an epoch has `W = max(1, floor((N - S) / S))` windows
/// of `S + 1` tokens that overlap by one, so that each token but the first is a target once. In
/// epoch `e` sample `e * W + i` starts at token
///
/// `start = phase(e) + permutation_e(i) * S`, `phase(e)` in `0..min(S, N - W * S)`.
///
/// The phase moves the borders of the windows from epoch to epoch, so that a token is not always
/// seen with the same context; the price is that fewer than `2 * S` tokens, at the two ends of
/// the range, sit out an epoch. `W` does not depend on the phase, so the epoch of a sample is a
/// division.
///
/// Worked number: `N = 1000`, `S = 64` give `W = floor(936 / 64) = 14` windows and 64 phases; the
/// last window of phase 63 ends at token `63 + 13 * 64 + 65 = 960 <= 1000`.
#[derive(Clone, Debug)]
pub struct Order {
    sequence_length: u64,
    seed: u64,
    num_windows: u64,
    num_phases: u64,
}

impl Order {
    /// The order of `num_tokens` tokens in windows of `sequence_length + 1`, for this seed.
    ///
    /// # Errors
    /// [`Error::Zero`] if `sequence_length` is 0, [`Error::TooFewTokens`] if
    /// `num_tokens < sequence_length + 1`.
    pub fn new(num_tokens: u64, sequence_length: u64, seed: u64) -> Result<Self> {
        if sequence_length == 0 {
            return Err(Error::Zero { key: "sequence_length" });
        }
        if num_tokens <= sequence_length {
            return Err(Error::TooFewTokens { num_tokens, sequence_length });
        }
        let num_windows = ((num_tokens - sequence_length) / sequence_length).max(1);
        let num_phases = sequence_length.min(num_tokens - num_windows * sequence_length);
        Ok(Self { sequence_length, seed, num_windows, num_phases })
    }

    /// Windows, and so samples, in an epoch; the same in every epoch.
    pub fn num_windows(&self) -> u64 {
        self.num_windows
    }

    /// The epoch, from 0, that a sample belongs to.
    pub fn epoch(&self, sample: u64) -> u64 {
        sample / self.num_windows
    }

    /// First token of a sample's window, counted from the start of the range.
    pub fn start(&self, sample: u64) -> u64 {
        let (phase, window) = self.window(sample);
        phase + window * self.sequence_length
    }

    /// Phase of a sample's epoch, and number of its window.
    pub(crate) fn window(&self, sample: u64) -> (u64, u64) {
        let (phase, permutation) = self.epoch_order(self.epoch(sample));
        (phase, permutation.at(sample % self.num_windows))
    }

    /// Phase of an epoch, and the permutation from its samples to its windows.
    pub(crate) fn epoch_order(&self, epoch: u64) -> (u64, Permutation) {
        let epoch_key = hash_pair(self.seed, epoch);
        let phase = scale(hash_pair(epoch_key, 0), self.num_phases);
        (phase, Permutation::new(self.num_windows, hash_pair(epoch_key, 1)))
    }

    /// Tokens predicted per window.
    pub(crate) fn sequence_length(&self) -> u64 {
        self.sequence_length
    }
}

/// Finalizer of SplitMix64 (Steele, Lea and Flood 2014): a bijection whose output bits each depend
/// on all input bits.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A 64-bit hash of an ordered pair. The constant, 2^64 / golden ratio, keeps (0, 0) off the fixed
/// point of [`mix`].
pub(crate) fn hash_pair(first: u64, second: u64) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let first = mix(first.wrapping_add(GOLDEN));
    mix(first ^ mix(second.wrapping_add(GOLDEN).wrapping_mul(GOLDEN)))
}

/// Maps a random 64-bit value to `0..modulus` by multiplication; the bias is below
/// `modulus / 2^64`.
fn scale(random: u64, modulus: u64) -> u64 {
    ((u128::from(random) * u128::from(modulus)) >> 64) as u64
}
