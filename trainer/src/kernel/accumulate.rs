//! Element-wise sums, casts and column sums: what gradients need between the products.
//!
//! All arithmetic is in f32 and each result is rounded once.

use super::block::{Blocks, block, rows_per_block, rows_per_partial};
use super::dispatch::{Body, Level};
use super::element::Element;
use super::pool::Pool;

#[cfg(test)]
mod tests;

/// `sum += term`, element by element: a gradient in f32 takes in a product in bf16, or a residual
/// stream a branch.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign<S: Element, T: Element>(pool: &Pool, sum: &mut [S], term: &[T]) {
    combine(pool, sum, term, Combination::Add);
}

/// `to = from`, rounded to nearest even where `to` is shorter: a master weight becomes a working
/// copy, or a product in bf16 a gradient in f32.
///
/// # Panics
/// If the lengths differ.
pub fn cast<S: Element, T: Element>(pool: &Pool, from: &[T], to: &mut [S]) {
    combine(pool, to, from, Combination::Replace);
}

/// `sums += ` the sum of the rows of `x`: the gradient of a bias.
///
/// # Shapes
/// - `x`: `[N, D]`
/// - `sums`: `[D]`, added to
///
/// # Panics
/// If `x` is not whole rows.
pub fn add_column_sums<E: Element>(pool: &Pool, x: &[E], sums: &mut [f32]) {
    let num_columns = sums.len();
    assert!(num_columns > 0 && x.len().is_multiple_of(num_columns), "x is whole rows");
    let num_rows = x.len() / num_columns;
    let rows = rows_per_partial(num_rows);
    let mut partials = vec![0.0f32; num_rows.div_ceil(rows) * num_columns];
    let blocks = Blocks::new(&mut partials, num_columns);
    let level = Level::detect();
    pool.for_each(blocks.num_blocks(), |index| {
        let x = block(x, index, rows * num_columns);
        level.run(ColumnSumBlock { x, sums: blocks.take(index) });
    });
    level.run(ColumnSumBlock { x: &partials, sums });
}

/// What becomes of an element of the output.
#[derive(Clone, Copy)]
enum Combination {
    Add,
    Replace,
}

fn combine<S: Element, T: Element>(
    pool: &Pool,
    output: &mut [S],
    input: &[T],
    combination: Combination,
) {
    assert_eq!(output.len(), input.len(), "as many elements are read as written");
    let len = rows_per_block(1);
    let output = Blocks::new(output, len);
    let level = Level::detect();
    pool.for_each(output.num_blocks(), |index| {
        level.run(CombineBlock {
            output: output.take(index),
            input: block(input, index, len),
            combination,
        });
    });
}

/// A block of elements that are combined.
struct CombineBlock<'a, S, T> {
    output: &'a mut [S],
    input: &'a [T],
    combination: Combination,
}

impl<S: Element, T: Element> Body for CombineBlock<'_, S, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        let elements = self.output.iter_mut().zip(self.input);
        match self.combination {
            Combination::Add => {
                for (sum, term) in elements {
                    *sum = S::from_f32(sum.to_f32() + term.to_f32());
                }
            }
            Combination::Replace => {
                for (to, from) in elements {
                    *to = S::from_f32(from.to_f32());
                }
            }
        }
    }
}

/// `sums += ` the rows of `x`, one after another.
struct ColumnSumBlock<'a, E> {
    x: &'a [E],
    sums: &'a mut [f32],
}

impl<E: Element> Body for ColumnSumBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        for row in self.x.chunks_exact(self.sums.len()) {
            for (sum, x) in self.sums.iter_mut().zip(row) {
                *sum += x.to_f32();
            }
        }
    }
}
