//! The token embedding: a gather of rows and its gradient, with learned positions where a model has
//! them.
//!
//! Legend: n tokens, B batch, T sequence, D hidden, V vocab.

use super::block::{Blocks, block, rows_per_block};
use super::dispatch::{Body, Level};
use super::element::Element;
use super::error::Error;
use super::pool::Pool;

#[cfg(test)]
mod tests;

/// The tables that rows are taken from.
#[derive(Debug, Clone, Copy)]
pub struct Embedding<'a, E> {
    /// `[V, D]`, a row for each token.
    pub weight: &'a [E],
    /// `[T, D]` if given: a row for each position of a sequence, added to that of the token.
    pub positions: Option<&'a [E]>,
    /// `[n]`, below T: where each token stands; `None` for token `i` at position `i % T`.
    pub position_ids: Option<&'a [i64]>,
    /// D.
    pub hidden_size: usize,
}

/// Where [`backward`] adds to.
#[derive(Debug)]
pub struct EmbeddingGradients<'a> {
    /// `[V, D]`, added to.
    pub d_weight: &'a mut [f32],
    /// `[T, D]` if given, added to.
    pub d_positions: Option<&'a mut [f32]>,
    /// As in [`Embedding`].
    pub position_ids: Option<&'a [i64]>,
    /// D.
    pub hidden_size: usize,
}

impl<E: Element> Embedding<'_, E> {
    /// Writes the row of each token to `x`, plus that of its position if there are positions; the sum
    /// is in f32, rounded once.
    ///
    /// # Shapes
    /// - `ids`: `[n]`; with positions that are not listed `[B * T]`
    /// - `x`: `[n, D]`, overwritten
    ///
    /// # Errors
    /// [`Error::TokenId`] for the first id that is not below V; `x` is then unchanged.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn forward(&self, pool: &Pool, ids: &[i64], x: &mut [E]) -> Result<(), Error> {
        let hidden_size = self.hidden_size;
        assert_eq!(x.len(), ids.len() * hidden_size, "one row a token");
        check_ids(ids, self.weight.len(), hidden_size)?;
        if let Some(positions) = self.positions {
            check_positions(ids, self.position_ids, positions.len(), hidden_size);
        }
        let rows = rows_per_block(hidden_size);
        let x = Blocks::new(x, rows * hidden_size);
        let level = Level::detect();
        pool.for_each(x.num_blocks(), |index| {
            level.run(ForwardBlock {
                embedding: *self,
                ids: block(ids, index, rows),
                first_row: index * rows,
                x: x.take(index),
            });
        });
        Ok(())
    }
}

/// The gradient of [`Embedding::forward`]: adds the rows of `dx` `[n, D]` to those of the tokens, and
/// to those of the positions.
///
/// A thread owns a range of tokens, and adds to each its rows in the order of `dx`: nothing depends
/// on the number of threads, which only decides where ranges end.
///
/// # Errors
/// [`Error::TokenId`] for the first id that is not below V; the gradients are then unchanged.
///
/// # Panics
/// If the lengths do not fit.
pub fn backward<E: Element>(
    pool: &Pool,
    ids: &[i64],
    dx: &[E],
    gradients: EmbeddingGradients<'_>,
) -> Result<(), Error> {
    let EmbeddingGradients { d_weight, d_positions, position_ids, hidden_size } = gradients;
    assert_eq!(dx.len(), ids.len() * hidden_size, "one row a token");
    check_ids(ids, d_weight.len(), hidden_size)?;
    if let Some(d_positions) = d_positions {
        check_positions(ids, position_ids, d_positions.len(), hidden_size);
        match position_ids {
            Some(position_ids) => add_rows(pool, position_ids, dx, (d_positions, hidden_size)),
            None => add_sequences(pool, dx, (d_positions, hidden_size)),
        }
    }
    add_rows(pool, ids, dx, (d_weight, hidden_size));
    Ok(())
}

/// Adds each sequence of rows of `dx` to the table `[T, D]`.
fn add_sequences<E: Element>(
    pool: &Pool,
    dx: &[E],
    (d_positions, hidden_size): (&mut [f32], usize),
) {
    let level = Level::detect();
    let num_positions = d_positions.len() / hidden_size;
    let rows = rows_per_block(hidden_size).min(num_positions.div_ceil(pool.num_threads()));
    let d_positions = Blocks::new(d_positions, rows * hidden_size);
    pool.for_each(d_positions.num_blocks(), |index| {
        let d_positions = d_positions.take(index);
        let first = index * rows * hidden_size;
        for sequence in dx.chunks_exact(num_positions * hidden_size) {
            let dx = &sequence[first..first + d_positions.len()];
            level.run(AddRow { row: d_positions, dx });
        }
    });
}

/// Adds row `i` of `dx` to row `ids[i]` of a table.
fn add_rows<E: Element>(
    pool: &Pool,
    ids: &[i64],
    dx: &[E],
    (table, hidden_size): (&mut [f32], usize),
) {
    let level = Level::detect();
    let ranges = token_ranges(ids, table.len() / hidden_size, pool.num_threads());
    let lens = ranges.windows(2).map(|range| (range[1] - range[0]) * hidden_size);
    let table = Blocks::with_lens(table, lens);
    pool.for_each(table.num_blocks(), |index| {
        level.run(BackwardRange {
            ids,
            dx,
            first_token: ranges[index],
            d_weight: table.take(index),
            hidden_size,
        });
    });
}

/// The ends of at most `num_ranges` ranges of tokens that `ids` name about equally often: from 0 to
/// `vocab_size`.
fn token_ranges(ids: &[i64], vocab_size: usize, num_ranges: usize) -> Vec<usize> {
    let mut counts = vec![0usize; vocab_size];
    ids.iter().for_each(|id| counts[*id as usize] += 1);
    let mut ends = vec![0];
    let mut seen = 0;
    for (token, count) in counts.iter().enumerate() {
        seen += count;
        if seen * num_ranges >= ids.len() * ends.len() && ends.len() < num_ranges {
            ends.push(token + 1);
        }
    }
    ends.push(vocab_size);
    ends
}

fn check_ids(ids: &[i64], table_len: usize, hidden_size: usize) -> Result<(), Error> {
    assert!(hidden_size > 0, "a row has at least one element");
    assert!(table_len.is_multiple_of(hidden_size), "a table is whole rows of hidden_size");
    let vocab_size = table_len / hidden_size;
    let outside = |id: &i64| usize::try_from(*id).map_or(true, |id| id >= vocab_size);
    match ids.iter().position(outside) {
        None => Ok(()),
        Some(row) => Err(Error::TokenId { row, id: ids[row], vocab_size }),
    }
}

fn check_positions(
    ids: &[i64],
    position_ids: Option<&[i64]>,
    table_len: usize,
    hidden_size: usize,
) {
    assert!(table_len > 0 && table_len.is_multiple_of(hidden_size), "whole rows of hidden_size");
    let num_positions = table_len / hidden_size;
    match position_ids {
        None => assert!(ids.len().is_multiple_of(num_positions), "whole sequences of T tokens"),
        Some(listed) => {
            assert_eq!(listed.len(), ids.len(), "a position for each token");
            let known = |position: &i64| (0..num_positions as i64).contains(position);
            assert!(listed.iter().all(known), "positions are below T");
        }
    }
}

/// A block of rows of [`Embedding::forward`].
struct ForwardBlock<'a, E> {
    embedding: Embedding<'a, E>,
    ids: &'a [i64],
    first_row: usize,
    x: &'a mut [E],
}

impl<E: Element> Body for ForwardBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        let Embedding { weight, positions, position_ids, hidden_size } = self.embedding;
        let rows = self.x.chunks_exact_mut(hidden_size).zip(self.ids);
        for (row, (x, id)) in (self.first_row..).zip(rows) {
            let start = *id as usize * hidden_size;
            let token = &weight[start..start + hidden_size];
            let Some(positions) = positions else {
                x.copy_from_slice(token);
                continue;
            };
            let start = match position_ids {
                None => row * hidden_size % positions.len(),
                Some(position_ids) => position_ids[row] as usize * hidden_size,
            };
            let position = &positions[start..start + hidden_size];
            for ((x, token), position) in x.iter_mut().zip(token).zip(position) {
                *x = E::from_f32(token.to_f32() + position.to_f32());
            }
        }
    }
}

/// The tokens of one thread of [`backward`].
struct BackwardRange<'a, E> {
    ids: &'a [i64],
    dx: &'a [E],
    first_token: usize,
    /// The rows of the tokens from `first_token` on.
    d_weight: &'a mut [f32],
    hidden_size: usize,
}

impl<E: Element> Body for BackwardRange<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, level: Level) {
        let num_tokens = self.d_weight.len() / self.hidden_size;
        for (id, dx) in self.ids.iter().zip(self.dx.chunks_exact(self.hidden_size)) {
            // Tokens before the range wrap around to large numbers.
            let token = (*id as usize).wrapping_sub(self.first_token);
            if token < num_tokens {
                let start = token * self.hidden_size;
                AddRow { row: &mut self.d_weight[start..start + self.hidden_size], dx }.run(level);
            }
        }
    }
}

/// `row += dx`.
struct AddRow<'a, E> {
    row: &'a mut [f32],
    dx: &'a [E],
}

impl<E: Element> Body for AddRow<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        for (sum, dx) in self.row.iter_mut().zip(self.dx) {
            *sum += dx.to_f32();
        }
    }
}
