//! Stochastic rounding of states to bf16, with random bits that depend on nothing but the seed,
//! the step and the element's place in its parameter.
//!
//! A state that moves by less than half a unit of bf16's last place stands still under rounding to
//! nearest; rounded up with a probability equal to the dropped fraction, it moves as far on average
//! (Gupta et al. 2015, arXiv:1502.02551, section 3). The bits are a hash of a counter, so that any
//! cut of a parameter, on any rank, rounds alike.

use half::bf16;

/// Where the random bits of one update of one parameter come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounding {
    keys: [u32; 2],
}

/// Multipliers and shifts of the hash `lowbias32` (Wellons 2018): its bias, the worst distance of
/// an output bit's flip rate from one half, is 0.17 thousandths.
pub(crate) const MULTIPLIERS: [u32; 2] = [0x7feb_352d, 0x846c_a68b];
/// Spreads the high word of an index, which is zero but in parameters of more than 2^32 elements.
pub(crate) const HIGH_MULTIPLIER: u32 = 0x9e37_79b1;

impl Rounding {
    /// `seed` is that of the run and the parameter; `step` counts from one.
    pub(crate) fn new(seed: u64, step: u64) -> Self {
        let key = mix(seed ^ mix(step));
        Self { keys: [key as u32, (key >> 32) as u32] }
    }

    /// The keys of the hash, for those who compute it elsewhere.
    pub(crate) fn keys(self) -> [u32; 2] {
        self.keys
    }

    /// 32 random bits for element `index` and each after it: the low half for the first state, the
    /// high half for the second. `bits` does not cross a multiple of 2^32.
    #[inline(always)]
    pub(crate) fn fill(self, index: usize, bits: &mut [u32]) {
        let index = index as u64;
        let key = ((index >> 32) as u32).wrapping_mul(HIGH_MULTIPLIER) ^ self.keys[0];
        for (i, bits) in bits.iter_mut().enumerate() {
            let mut x = (index as u32).wrapping_add(i as u32) ^ key;
            x = (x ^ (x >> 16)).wrapping_mul(MULTIPLIERS[0]);
            x = (x ^ (x >> 15)).wrapping_add(self.keys[1]).wrapping_mul(MULTIPLIERS[1]);
            *bits = x ^ (x >> 16);
        }
    }
}

/// The finalizer of SplitMix64 (Steele et al. 2014): a permutation that scatters near numbers.
fn mix(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Rounds up with probability (dropped bits) / 2^16, given 16 random bits. Infinities and what
/// bf16 holds exactly stay, a NaN becomes 0x7fc0; the largest finite values may become infinite.
#[inline(always)]
pub(crate) fn round_stochastically(value: f32, random: u32) -> bf16 {
    // Sign and magnitude: the sum moves away from zero on either side, and into the next exponent
    // where it must. Only a NaN can wrap, and it is not selected.
    let rounded = value.to_bits().wrapping_add(random & 0xffff) >> 16;
    bf16::from_bits(if value.is_nan() { 0x7fc0 } else { rounded as u16 })
}

#[cfg(test)]
mod tests;
