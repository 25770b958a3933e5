//! The arithmetic of reductions: contributions in rank order become one.

use crate::collective::{Onto, Reduction};

/// Elements that go through the contributions together, so that sums stay in the first cache.
const BLOCK_ELEMENTS: usize = 1024;

/// A number in tensor memory. Every bit pattern of its size is one.
pub(super) trait Number: Copy {}

impl Number for f32 {}
impl Number for f64 {}
impl Number for i32 {}
impl Number for i64 {}
impl Number for Bf16 {}

/// A number that can be reduced.
pub(super) trait Element: Number + Default {
    fn plus(self, other: Self) -> Self;
    fn larger(self, other: Self) -> Self;
    fn smaller(self, other: Self) -> Self;
}

macro_rules! float_element {
    ($float:ty) => {
        impl Element for $float {
            fn plus(self, other: Self) -> Self {
                self + other
            }

            fn larger(self, other: Self) -> Self {
                // NaN on either side wins: a comparison with it is false.
                if self.is_nan() || self > other { self } else { other }
            }

            fn smaller(self, other: Self) -> Self {
                if self.is_nan() || self < other { self } else { other }
            }
        }
    };
}

macro_rules! integer_element {
    ($integer:ty) => {
        impl Element for $integer {
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            fn larger(self, other: Self) -> Self {
                self.max(other)
            }

            fn smaller(self, other: Self) -> Self {
                self.min(other)
            }
        }
    };
}

float_element!(f32);
float_element!(f64);
integer_element!(i32);
integer_element!(i64);

/// The bits of a bfloat16: the upper half of the f32 of the same value.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Bf16(pub(super) u16);

/// A number that can be a term of an ordered sum.
pub(super) trait Term: Number {
    /// What sums are kept in.
    type Sum: Element;

    /// The same value as a sum.
    fn widen(self) -> Self::Sum;
}

impl Term for Bf16 {
    type Sum = f32;

    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

impl Term for f32 {
    type Sum = f32;

    fn widen(self) -> f32 {
        self
    }
}

impl Term for f64 {
    type Sum = f64;

    fn widen(self) -> f64 {
        self
    }
}

/// Fills `output` with `((base + t_0) + t_1) + ...` of each element, where `base` is what it
/// holds, or nothing. There is at least one of `terms`, and all are as long as `output`.
pub(super) fn add_in_order<T: Term>(output: &mut [T::Sum], onto: Onto, terms: &[&[T]]) {
    for (block, output) in output.chunks_mut(BLOCK_ELEMENTS).enumerate() {
        let start = block * BLOCK_ELEMENTS;
        let end = start + output.len();
        let rest = match onto {
            Onto::Output => terms,
            Onto::Nothing => {
                let first = &terms[0][start..end];
                output.iter_mut().zip(first).for_each(|(sum, &term)| *sum = term.widen());
                &terms[1..]
            }
        };
        for term in rest {
            let term = &term[start..end];
            output.iter_mut().zip(term).for_each(|(sum, &term)| *sum = sum.plus(term.widen()));
        }
    }
}

/// Replaces `own`, the contribution of rank `rank`, by the reduction of all ranks' contributions.
///
/// `peers` holds the others' in rank order, this rank left out, each as long as `own`.
pub(super) fn reduce<T: Element>(reduction: Reduction, own: &mut [T], rank: usize, peers: &[&[T]]) {
    match reduction {
        // Up to three contributions the tree is the chain, which is faster.
        Reduction::TreeSum if peers.len() > 2 => tree(own, rank, peers),
        Reduction::Sum | Reduction::TreeSum => chain(own, rank, peers, T::plus),
        Reduction::Max => chain(own, rank, peers, T::larger),
        Reduction::Min => chain(own, rank, peers, T::smaller),
    }
}

/// `((r0 . r1) . r2) . r3` for each element.
fn chain<T: Element>(own: &mut [T], rank: usize, peers: &[&[T]], pair: impl Fn(T, T) -> T + Copy) {
    match (peers, rank) {
        ([], _) => {}
        ([second], 0) => {
            own.iter_mut().zip(*second).for_each(|(own, &peer)| *own = pair(*own, peer));
        }
        ([first], _) => {
            own.iter_mut().zip(*first).for_each(|(own, &peer)| *own = pair(peer, *own));
        }
        _ => {
            let mut sum = [T::default(); BLOCK_ELEMENTS];
            for (block, own) in own.chunks_mut(BLOCK_ELEMENTS).enumerate() {
                let sum = &mut sum[..own.len()];
                sum.copy_from_slice(contribution(own, rank, peers, block, 0));
                for source in 1..=peers.len() {
                    let next = contribution(own, rank, peers, block, source);
                    sum.iter_mut().zip(next).for_each(|(sum, &next)| *sum = pair(*sum, next));
                }
                own.copy_from_slice(sum);
            }
        }
    }
}

/// Sums of neighbors, level by level, an odd one out going up as it is.
///
/// Partial sums are kept like the digits of a binary counter: two of one size merge at once,
/// and what remains in the end merges from the right, which is the same tree.
fn tree<T: Element>(own: &mut [T], rank: usize, peers: &[&[T]]) {
    let mut sums: Vec<(u32, [T; BLOCK_ELEMENTS])> = Vec::new();
    for (block, own) in own.chunks_mut(BLOCK_ELEMENTS).enumerate() {
        for source in 0..=peers.len() {
            let mut digit = [T::default(); BLOCK_ELEMENTS];
            digit[..own.len()].copy_from_slice(contribution(own, rank, peers, block, source));
            let mut level = 0;
            while let Some((_, left)) = sums.pop_if(|(left_level, _)| *left_level == level) {
                digit = add_blocks(&left, &digit);
                level += 1;
            }
            sums.push((level, digit));
        }
        let (_, mut total) = sums.pop().expect("there is at least this rank's contribution");
        while let Some((_, left)) = sums.pop() {
            total = add_blocks(&left, &total);
        }
        own.copy_from_slice(&total[..own.len()]);
    }
}

fn add_blocks<T: Element>(
    left: &[T; BLOCK_ELEMENTS],
    right: &[T; BLOCK_ELEMENTS],
) -> [T; BLOCK_ELEMENTS] {
    std::array::from_fn(|i| left[i].plus(right[i]))
}

/// The block numbered `block` of what rank `source` contributes; `own` is that block of `rank`'s.
fn contribution<'a, T>(
    own: &'a [T],
    rank: usize,
    peers: &[&'a [T]],
    block: usize,
    source: usize,
) -> &'a [T] {
    if source == rank {
        return own;
    }
    let start = block * BLOCK_ELEMENTS;
    &peers[if source < rank { source } else { source - 1 }][start..start + own.len()]
}

#[cfg(test)]
mod tests;
