//! Rotary position embedding, in place on the fused output of the q, k and v projections.
//!
//! Legend: B batch, T sequence, N heads, K kv heads, H head dim.

use super::block::{Blocks, rows_per_block};
use super::dispatch::{Body, Level};
use super::element::Element;
use super::pool::Pool;

#[cfg(test)]
mod tests;

/// How a row of the fused projection, `[(N + 2 K) * H]`, is divided: q heads, k heads, v heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QkvLayout {
    /// N, the heads of q.
    pub num_attention_heads: usize,
    /// K, the heads of k and of v.
    pub num_key_value_heads: usize,
    /// H, the elements of a head.
    pub head_dim: usize,
}

impl QkvLayout {
    /// The elements of a row.
    #[must_use]
    pub fn row_len(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
    }

    /// The elements of a row that are rotated: all heads of q and k, which come first.
    fn rotated_len(&self) -> usize {
        (self.num_attention_heads + self.num_key_value_heads) * self.head_dim
    }
}

/// Cosines and sines for each position, in the half-split convention of Hugging Face: element `i` of
/// a head is paired with element `i + H / 2`.
///
/// # References
/// Su et al. 2021, arXiv:2104.09864, equations 15 and 34; there, neighbors are paired.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// `[num_positions, H / 2]`.
    cos: Vec<f32>,
    /// `[num_positions, H / 2]`.
    sin: Vec<f32>,
    head_dim: usize,
}

/// Where the rows of a batch stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions<'a> {
    /// Row `r` at `r % T`: sequences of this many rows.
    Counted(usize),
    /// `[B * T]`: row `r` at entry `r`, where positions start anew inside a sequence.
    Listed(&'a [i64]),
}

/// Which way a vector is turned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

impl Rope {
    /// Tables for positions `0..num_positions`: pair `i` turns by `position * theta^(-2 i / H)`,
    /// computed in f64 and rounded once.
    ///
    /// # Panics
    /// If `head_dim` is odd or 0.
    #[must_use]
    pub fn new(head_dim: usize, num_positions: usize, theta: f64) -> Self {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2), "head_dim is even, found {head_dim}");
        let frequencies: Vec<f64> = (0..head_dim / 2)
            .map(|pair| theta.powf(-2.0 * pair as f64 / head_dim as f64))
            .collect();
        Self::with_frequencies(&frequencies, 1.0, num_positions)
    }

    /// The same for other frequencies, in radians a position, one a pair; cosines and sines are
    /// multiplied by `scale`.
    #[must_use]
    pub fn with_frequencies(frequencies: &[f64], scale: f64, num_positions: usize) -> Self {
        let head_dim = 2 * frequencies.len();
        let mut cos = Vec::with_capacity(num_positions * frequencies.len());
        let mut sin = Vec::with_capacity(num_positions * frequencies.len());
        for position in 0..num_positions {
            for frequency in frequencies {
                let (s, c) = (position as f64 * frequency).sin_cos();
                cos.push((c * scale) as f32);
                sin.push((s * scale) as f32);
            }
        }
        Self { cos, sin, head_dim }
    }

    /// How many positions the tables hold.
    #[must_use]
    pub fn num_positions(&self) -> usize {
        self.cos.len() / (self.head_dim / 2)
    }

    /// Turns q and k of `qkv` `[B * T, (N + 2 K) * H]` by their positions, in place. v stays as it
    /// is.
    ///
    /// # Panics
    /// If `qkv` is not whole sequences or another number of rows than the listed positions, or the
    /// tables are too short or made for another head dim.
    pub fn apply<E: Element>(
        &self,
        pool: &Pool,
        qkv: &mut [E],
        layout: QkvLayout,
        positions: Positions<'_>,
    ) {
        self.turn(pool, qkv, layout, positions, Direction::Forward);
    }

    /// [`Rope::apply`] to rows from row `first` on of a larger `qkv`, on the calling thread.
    ///
    /// # Panics
    /// If `rows` are not whole rows, or the tables are too short or made for another head dim.
    pub fn apply_to_rows<E: Element>(
        &self,
        (first_row, rows): (usize, &mut [E]),
        layout: QkvLayout,
        positions: Positions<'_>,
    ) {
        assert_eq!(layout.head_dim, self.head_dim, "the tables are for this head dim");
        assert!(rows.len().is_multiple_of(layout.row_len()), "whole rows");
        let (rope, direction) = (self, Direction::Forward);
        Level::detect().run(TurnBlock { rope, qkv: rows, layout, first_row, positions, direction });
    }

    /// Cosines and sines of row `row`, `[H / 2]` each.
    #[inline(always)]
    pub(super) fn row(&self, row: usize, positions: Positions<'_>) -> (&[f32], &[f32]) {
        let position = match positions {
            Positions::Counted(len) => row % len,
            Positions::Listed(list) => list[row] as usize,
        };
        let half = self.head_dim / 2;
        let table = position * half..(position + 1) * half;
        (&self.cos[table.clone()], &self.sin[table])
    }

    /// The gradient of [`Rope::apply`], in place on the gradient of its output: turns back.
    ///
    /// # Panics
    /// As [`Rope::apply`].
    pub fn apply_backward<E: Element>(
        &self,
        pool: &Pool,
        d_qkv: &mut [E],
        layout: QkvLayout,
        positions: Positions<'_>,
    ) {
        self.turn(pool, d_qkv, layout, positions, Direction::Backward);
    }

    fn turn<E: Element>(
        &self,
        pool: &Pool,
        qkv: &mut [E],
        layout: QkvLayout,
        positions: Positions<'_>,
        direction: Direction,
    ) {
        assert_eq!(layout.head_dim, self.head_dim, "the tables are for this head dim");
        match positions {
            Positions::Counted(len) => {
                assert!(len > 0 && len <= self.num_positions(), "tables long enough");
                assert!(qkv.len().is_multiple_of(layout.row_len() * len), "whole sequences");
            }
            Positions::Listed(list) => {
                let known = |&position: &i64| (0..self.num_positions() as i64).contains(&position);
                assert!(list.iter().all(known), "tables long enough");
                assert_eq!(qkv.len(), layout.row_len() * list.len(), "a position for each row");
            }
        }
        let rows = rows_per_block(layout.row_len());
        let blocks = Blocks::new(qkv, rows * layout.row_len());
        let level = Level::detect();
        pool.for_each(blocks.num_blocks(), |index| {
            level.run(TurnBlock {
                rope: self,
                qkv: blocks.take(index),
                layout,
                first_row: index * rows,
                positions,
                direction,
            });
        });
    }
}

/// Rows of one block, the first of them row `first_row` of the batch.
struct TurnBlock<'a, E> {
    rope: &'a Rope,
    qkv: &'a mut [E],
    layout: QkvLayout,
    first_row: usize,
    positions: Positions<'a>,
    direction: Direction,
}

impl<E: Element> Body for TurnBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        let half = self.layout.head_dim / 2;
        let mut turned_sin = vec![0.0f32; half];
        let rows = self.qkv.chunks_exact_mut(self.layout.row_len());
        for (number, row) in (self.first_row..).zip(rows) {
            let (cos, sin) = self.rope.row(number, self.positions);
            turned_sin.copy_from_slice(sin);
            if self.direction == Direction::Backward {
                for sin in &mut turned_sin {
                    *sin = -*sin;
                }
            }
            let rotated = &mut row[..self.layout.rotated_len()];
            for head in rotated.chunks_exact_mut(self.layout.head_dim) {
                let (first, second) = head.split_at_mut(half);
                let table = cos.iter().zip(&turned_sin);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(table) {
                    let (x, y) = (a.to_f32(), b.to_f32());
                    *a = E::from_f32(x * cos - y * sin);
                    *b = E::from_f32(y * cos + x * sin);
                }
            }
        }
    }
}
