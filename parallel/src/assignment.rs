//! Which global micro-batches each rank computes.

use std::ops::Range;

use crate::error::{Error, Result};

/// How many divisors on each side of the wrong rank count an error proposes.
const NUM_PROPOSALS: usize = 3;

/// The micro-batches `0..num_micro_batches` of one step, in contiguous equal blocks over ranks.
///
/// With 8 micro-batches and 2 ranks, rank 0 computes 0, 1, 2, 3 and rank 1 computes 4, 5, 6, 7.
/// Micro-batches are numbered globally, so what each of them holds does not depend on who
/// computes it. If a block's length is a power of two, a level-by-level pairwise sum inside
/// each block followed by [`Reduction::TreeSum`](crate::Reduction::TreeSum) over the ranks adds
/// in the same order as one pairwise sum over all micro-batches on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    num_micro_batches: usize,
    degree: usize,
}

impl Assignment {
    /// Divides `num_micro_batches` over `degree` ranks.
    ///
    /// # Errors
    /// [`Error::Zero`] if either is 0; [`Error::MicroBatches`], with counts that would do, if
    /// the division leaves a remainder.
    pub fn new(num_micro_batches: usize, degree: usize) -> Result<Self> {
        if num_micro_batches == 0 {
            return Err(Error::Zero { what: "the number of micro-batches" });
        }
        if degree == 0 {
            return Err(Error::Zero { what: "the number of ranks" });
        }
        let remainder = num_micro_batches % degree;
        if remainder != 0 {
            return Err(Error::MicroBatches {
                num_micro_batches,
                degree,
                remainder,
                micro_batches_remedy: alternatives(&multiples_around(num_micro_batches, degree)),
                ranks_remedy: alternatives(&divisors_around(num_micro_batches, degree)),
            });
        }
        Ok(Self { num_micro_batches, degree })
    }

    /// Micro-batches in a step, all ranks together.
    pub fn num_micro_batches(&self) -> usize {
        self.num_micro_batches
    }

    /// Micro-batches in a step on each rank.
    pub fn micro_batches_per_rank(&self) -> usize {
        self.num_micro_batches / self.degree
    }

    /// The global numbers of the micro-batches that `rank` computes, in the order of computing.
    ///
    /// # Panics
    /// If `rank` is not below the degree.
    pub fn of_rank(&self, rank: usize) -> Range<usize> {
        assert!(rank < self.degree, "rank {rank} of {}", self.degree);
        let block = self.micro_batches_per_rank();
        rank * block..(rank + 1) * block
    }

    /// The rank that computes a micro-batch.
    ///
    /// # Panics
    /// If `micro_batch` is not below the number of micro-batches.
    pub fn owner(&self, micro_batch: usize) -> usize {
        assert!(
            micro_batch < self.num_micro_batches,
            "micro-batch {micro_batch} of {}",
            self.num_micro_batches
        );
        micro_batch / self.micro_batches_per_rank()
    }
}

/// The multiples of `degree` next below (if any) and next above `num_micro_batches`.
fn multiples_around(num_micro_batches: usize, degree: usize) -> Vec<usize> {
    let below = num_micro_batches / degree * degree;
    [below, below + degree].into_iter().filter(|&count| count > 0).collect()
}

/// The divisors of `num_micro_batches` nearest to `degree`, ascending.
fn divisors_around(num_micro_batches: usize, degree: usize) -> Vec<usize> {
    let is_divisor = |ranks: &usize| num_micro_batches.is_multiple_of(*ranks);
    let below = (1..degree.min(num_micro_batches + 1)).rev().filter(is_divisor);
    let above = (degree + 1..=num_micro_batches).filter(is_divisor);
    let mut near: Vec<usize> = below.take(NUM_PROPOSALS).collect();
    near.reverse();
    near.extend(above.take(NUM_PROPOSALS));
    near
}

/// `[1, 2, 4]` as `1, 2 or 4`.
fn alternatives(numbers: &[usize]) -> String {
    let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests;
