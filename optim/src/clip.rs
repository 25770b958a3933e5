//! Global gradient clipping, as two halves around the caller's reduction over ranks (Pascanu,
//! Mikolov and Bengio 2013, arXiv:1211.5063, algorithm 1).
//!
//! The squares are added in f64 along one fixed binary tree over a parameter's elements, so the
//! sum has the same bits whoever computed which part of it:
//!
//! ```text
//! leaf i          elements [256 i, 256 (i + 1)): 16 lanes of every 16th element, then a tree
//! node (k, i)     node (k - 1, 2 i) + node (k - 1, 2 i + 1), or the left one alone at the end
//! ```
//!
//! A block of `256 * 2^k` elements is a node of that tree. Ranks therefore may compute the blocks
//! they own, of any such size at which their shards are cut, bring the sums together in block
//! order (an all-reduce over sums that are zero elsewhere is exact), and finish with [`tree_sum`].

use crate::dispatch::{Kernel, SimdLevel};
use crate::error::{Error, Result};
use crate::real::Real;

/// Elements of a leaf of the summation tree; shards must be cut at multiples of it.
pub const LEAF_ELEMENTS: usize = 256;

/// Elements of a block where nothing asks for smaller ones: 16 KiB of f32, 8 bytes of sum.
pub const BLOCK_ELEMENTS: usize = 4096;

/// Partial sums that a leaf keeps side by side, for the vector units.
const LANES: usize = 16;

/// Number of blocks of `num_values` values, the last one possibly short.
pub fn num_blocks(num_values: usize, block_elements: usize) -> usize {
    num_values.div_ceil(block_elements)
}

/// Sum of squares of each block, counted from the start of `values`, which is the start of a
/// parameter or a multiple of `block_elements` after it.
///
/// A block with a NaN gives NaN, one with an infinity infinity (or NaN). Finite `f32` values
/// cannot overflow a sum; `f64` values can, to infinity.
///
/// # Shapes
/// - `values`: `[n]`
/// - `sums`: `[num_blocks(n, block_elements)]`, overwritten
///
/// # Errors
/// [`Error::BlockElements`] unless `block_elements` is a power of two and at least
/// [`LEAF_ELEMENTS`]; [`Error::BlockCount`] if `sums` has another length.
pub fn block_squared_norms<T: Real>(
    values: &[T],
    block_elements: usize,
    sums: &mut [f64],
) -> Result<()> {
    block_squared_norms_at(SimdLevel::detect(), values, block_elements, sums)
}

/// [`block_squared_norms`] at a given vector level.
fn block_squared_norms_at<T: Real>(
    level: SimdLevel,
    values: &[T],
    block_elements: usize,
    sums: &mut [f64],
) -> Result<()> {
    if !block_elements.is_power_of_two() || block_elements < LEAF_ELEMENTS {
        return Err(Error::BlockElements { block_elements, leaf_elements: LEAF_ELEMENTS });
    }
    let (num_values, found) = (values.len(), sums.len());
    let expected = num_blocks(num_values, block_elements);
    if found != expected {
        return Err(Error::BlockCount { num_values, block_elements, expected, found });
    }
    let mut leaves = vec![0.0; (block_elements / LEAF_ELEMENTS).min(num_values)];
    for (block, sum) in values.chunks(block_elements).zip(sums) {
        let leaves = &mut leaves[..num_blocks(block.len(), LEAF_ELEMENTS)];
        level.run(LeafSums { values: block, sums: leaves });
        *sum = fold_tree(leaves);
    }
    Ok(())
}

/// Sum of block sums, or of parameters' sums, along the tree: neighbors in pairs, level by level.
///
/// For the sums of all blocks of a parameter in order, the result does not depend on the size of
/// the blocks. The empty sum is 0.
pub fn tree_sum(sums: &[f64]) -> f64 {
    fold_tree(&mut sums.to_vec())
}

/// Sum of squares of one whole parameter: [`tree_sum`] of its blocks.
///
/// Non-finite values make it non-finite; ask `f64::is_finite` before an update.
pub fn squared_norm<T: Real>(values: &[T]) -> f64 {
    let mut sums = vec![0.0; num_blocks(values.len(), BLOCK_ELEMENTS)];
    block_squared_norms(values, BLOCK_ELEMENTS, &mut sums)
        .expect("BLOCK_ELEMENTS is a multiple of the leaf and the sums were sized for it");
    tree_sum(&sums)
}

/// The factor that brings a gradient of L2 norm `norm` down to `max_norm`:
/// `min(1, max_norm / (norm + 1e-6))`, as `torch.nn.utils.clip_grad_norm_`.
///
/// Worked number: norm 3, max_norm 1 gives 0.3333332. A NaN norm gives NaN (which an update
/// refuses) and an infinite one 0: look at `norm.is_finite()` first.
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    let scale = max_norm / (norm + 1e-6);
    // `f64::min` would take the 1 over a NaN.
    if scale > 1.0 { 1.0 } else { scale }
}

/// Adds neighbors until one sum is left; destroys `sums`.
fn fold_tree(sums: &mut [f64]) -> f64 {
    let mut len = sums.len();
    while len > 1 {
        for i in 0..len / 2 {
            sums[i] = sums[2 * i] + sums[2 * i + 1];
        }
        if len % 2 == 1 {
            sums[len / 2] = sums[len - 1];
        }
        len = len.div_ceil(2);
    }
    sums.first().copied().unwrap_or(0.0)
}

/// The sum of squares of every leaf of `values`.
struct LeafSums<'a, T> {
    values: &'a [T],
    sums: &'a mut [f64],
}

impl<T: Real> Kernel for LeafSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (leaf, sum) in self.values.chunks(LEAF_ELEMENTS).zip(self.sums) {
            *sum = leaf_sum(leaf);
        }
    }
}

/// Squares in f64 (exact for f32) in fixed lanes, which a short leaf fills from the left.
#[inline(always)]
fn leaf_sum<T: Real>(leaf: &[T]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (rows, rest) = leaf.as_chunks::<LANES>();
    for row in rows {
        for (lane, value) in lanes.iter_mut().zip(row) {
            let value = value.to_f64();
            *lane += value * value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        let value = value.to_f64();
        *lane += value * value;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests;
