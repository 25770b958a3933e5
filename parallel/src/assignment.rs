//! Which global micro-batches each rank computes.

use crate::error::{Error, Result};

/// The micro-batches `0..num_micro_batches` of one step, dealt to ranks in turn.
///
/// With 7 micro-batches and 3 ranks, rank 0 computes 0, 3, 6, rank 1 computes 1, 4 and rank 2
/// computes 2, 5: round `j` holds the micro-batches from `3 j` on, and in the last round ranks 1
/// and 2 have none. Micro-batches are numbered globally, so what each of them holds does not
/// depend on who computes it. A
/// [`Collective::ordered_reduce_scatter`](crate::Collective::ordered_reduce_scatter) after each
/// round adds them in the order of their numbers, whatever the number of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    num_micro_batches: usize,
    degree: usize,
}

impl Assignment {
    /// Deals `num_micro_batches` to `degree` ranks.
    ///
    /// # Errors
    /// [`Error::Zero`] if either is 0; [`Error::MicroBatches`], with counts that would do, if
    /// there are more ranks than micro-batches, as some would never have work.
    pub fn new(num_micro_batches: usize, degree: usize) -> Result<Self> {
        if num_micro_batches == 0 {
            return Err(Error::Zero { what: "the number of micro-batches" });
        }
        if degree == 0 {
            return Err(Error::Zero { what: "the number of ranks" });
        }
        if degree > num_micro_batches {
            let idle = degree - num_micro_batches;
            return Err(Error::MicroBatches { num_micro_batches, degree, idle });
        }
        Ok(Self { num_micro_batches, degree })
    }

    /// Micro-batches in a step, all ranks together.
    pub fn num_micro_batches(&self) -> usize {
        self.num_micro_batches
    }

    /// Ranks that share them.
    pub fn degree(&self) -> usize {
        self.degree
    }

    /// Rounds in a step, `ceil(num_micro_batches / degree)`: in each, every rank computes one
    /// micro-batch, but for the last, in which some ranks may have none.
    pub fn num_rounds(&self) -> usize {
        self.num_micro_batches.div_ceil(self.degree)
    }

    /// The global number `round * degree + rank` of the micro-batch that `rank` computes in a
    /// round from 0; `None` if there is none.
    ///
    /// # Panics
    /// If `rank` is not below the degree.
    pub fn micro_batch(&self, round: usize, rank: usize) -> Option<usize> {
        assert!(rank < self.degree, "rank {rank} of {}", self.degree);
        let number = round.checked_mul(self.degree)?.checked_add(rank)?;
        (number < self.num_micro_batches).then_some(number)
    }

    /// The global numbers of the micro-batches that `rank` computes, ascending.
    ///
    /// # Panics
    /// If `rank` is not below the degree.
    pub fn of_rank(&self, rank: usize) -> impl Iterator<Item = usize> + use<> {
        assert!(rank < self.degree, "rank {rank} of {}", self.degree);
        (rank..self.num_micro_batches).step_by(self.degree)
    }
}

#[cfg(test)]
mod tests;
