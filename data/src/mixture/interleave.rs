//! Turns among sources with fixed shares, in constant time, both ways.
//!
//! In each block of 2^20 samples a source with share `w` has a quota of `w * 2^20`. Sample `i` of
//! block `b` goes to position `(i * M + offset(b)) mod 2^20`, with `M` odd and near 2^20 over the
//! golden ratio, and the positions are dealt out to the sources in runs as long as their quotas. A
//! sequence of this kind spreads any run of positions evenly (Weyl 1916; Knuth, The Art of
//! Computer Programming 2, section 3.3.3), so the shares of every prefix are nearer to the weights
//! than random draws would be: off by O(log n) samples after n, where draws are by O(sqrt(n)).

use crate::order::hash_pair;

const BLOCK: u64 = 1 << 20;
const MASK: u64 = BLOCK - 1;
/// Odd, so that multiplication by it permutes the positions; 2^20 / golden ratio = 648,055.7.
const MULTIPLIER: u64 = 648_055;
/// Its inverse modulo 2^20.
const INVERSE: u64 = inverse(MULTIPLIER);

/// The inverse of an odd number modulo 2^20, by Newton's iteration, which doubles the number of
/// right bits from 3.
const fn inverse(odd: u64) -> u64 {
    let (mut inverse, mut round) = (odd, 0);
    while round < 4 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    inverse & MASK
}

/// The smallest share that has a quota of its own.
pub(super) const SMALLEST_SHARE: f64 = 1.0 / BLOCK as f64;

/// The turns of one stage.
#[derive(Clone, Debug)]
pub(super) struct Interleave {
    /// Position behind the last of each source, in a block.
    ends: Vec<u64>,
    key: u64,
}

impl Interleave {
    /// Turns by shares that sum to 1; the position of what is lost to rounding goes to the
    /// largest remainders. A positive share below [`SMALLEST_SHARE`] may get no turn.
    pub(super) fn new(shares: &[f64], key: u64) -> Self {
        let exact: Vec<f64> = shares.iter().map(|share| share * BLOCK as f64).collect();
        let mut quotas: Vec<u64> = exact.iter().map(|&quota| quota as u64).collect();
        let mut by_remainder: Vec<usize> =
            (0..shares.len()).filter(|&source| shares[source] > 0.0).collect();
        let remainder = |source: usize| exact[source] - exact[source].floor();
        by_remainder.sort_by(|&a, &b| remainder(b).total_cmp(&remainder(a)).then(a.cmp(&b)));
        let missing = BLOCK.saturating_sub(quotas.iter().sum());
        for (_, &source) in (0..missing).zip(by_remainder.iter().cycle()) {
            quotas[source] += 1;
        }
        let mut end = 0;
        let ends = quotas.into_iter().map(|quota| {
            end += quota;
            end
        });
        Self { ends: ends.collect(), key }
    }

    /// Turns of a source in each block.
    pub(super) fn quota(&self, source: usize) -> u64 {
        self.ends[source] - self.start(source)
    }

    fn start(&self, source: usize) -> u64 {
        source.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    fn offset(&self, block: u64) -> u64 {
        hash_pair(self.key, block) & MASK
    }

    /// Source of a sample of the stage, and which of the source's samples in the stage it is.
    pub(super) fn at(&self, sample: u64) -> (usize, u64) {
        let block = sample / BLOCK;
        let position =
            (sample & MASK).wrapping_mul(MULTIPLIER).wrapping_add(self.offset(block)) & MASK;
        let source = self.ends.partition_point(|&end| end <= position);
        let rank = self.rank(source, block, position);
        (source, block * self.quota(source) + rank)
    }

    /// The sample of the stage that is the source's `index`-th; `None` if it has no turns.
    pub(super) fn index_of(&self, source: usize, index: u64) -> Option<u64> {
        let quota = self.quota(source);
        let block = index.checked_div(quota)?;
        let position = self.position(source, block, index % quota)?;
        let turn = position.wrapping_sub(self.offset(block)).wrapping_mul(INVERSE) & MASK;
        block.checked_mul(BLOCK)?.checked_add(turn)
    }

    /// Samples of the source among the first `num_samples` of the stage.
    pub(super) fn count(&self, source: usize, num_samples: u64) -> u64 {
        let block = num_samples / BLOCK;
        block * self.quota(source) + self.count_in_block(source, block, num_samples & MASK)
    }

    /// Samples of the source among the first `turns` of a block.
    fn count_in_block(&self, source: usize, block: u64, turns: u64) -> u64 {
        let offset = self.offset(block);
        count_below(turns, offset, self.ends[source])
            - count_below(turns, offset, self.start(source))
    }

    /// How many of the source's turns in a block come before the one at `position`, so that its
    /// samples are used in order within a block.
    fn rank(&self, source: usize, block: u64, position: u64) -> u64 {
        let turn = position.wrapping_sub(self.offset(block)).wrapping_mul(INVERSE) & MASK;
        self.count_in_block(source, block, turn)
    }

    /// The position of the source's turn number `rank` in a block: the inverse of
    /// [`Interleave::rank`], by bisection over turns.
    fn position(&self, source: usize, block: u64, rank: u64) -> Option<u64> {
        let (mut low, mut high) = (0, BLOCK);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if self.count_in_block(source, block, middle) <= rank {
                low = middle
            } else {
                high = middle
            }
        }
        (self.count_in_block(source, block, low) == rank)
            .then(|| low.wrapping_mul(MULTIPLIER).wrapping_add(self.offset(block)) & MASK)
    }
}

/// How many of the first `turns` turns have a position below `bound`: the sum over `i` of
/// `floor((M i + offset + 2^20 - bound) / 2^20)` subtracted from that of
/// `floor((M i + offset) / 2^20) + 1`, since the two differ where the position is below `bound`.
fn count_below(turns: u64, offset: u64, bound: u64) -> u64 {
    let whole = floor_sum(turns, BLOCK, MULTIPLIER, offset) + turns;
    whole - floor_sum(turns, BLOCK, MULTIPLIER, offset + BLOCK - bound)
}

/// The sum of `floor((a i + b) / m)` over `i` in `0..n`, by Euclid's algorithm on `(a, m)`
/// (Graham, Knuth and Patashnik, Concrete Mathematics, section 3.5). The numbers here stay below
/// 2^42.
fn floor_sum(mut n: u64, mut m: u64, mut a: u64, mut b: u64) -> u64 {
    let mut sum = 0;
    loop {
        sum += n * n.saturating_sub(1) / 2 * (a / m) + n * (b / m);
        (a, b) = (a % m, b % m);
        let top = a * n + b;
        if top < m {
            return sum;
        }
        (n, b) = (top / m, top % m);
        (m, a) = (a, m);
    }
}
