//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34) in the half-split form of
//! Hugging Face: pair `i` of a head is (element `i`, element `i + head_dim / 2`).

use half::bf16;
use tch::{Kind, Tensor};

use super::attention::Attention;
use super::compute::{Compute, per_element};
use super::config::DecoderSpec;
use super::units::Projection;
use super::views::Weights;
use crate::kernel::attention::Turned;
use crate::kernel::matrix::Finish;
use crate::kernel::rope::{Positions, QkvLayout, Rope};
use crate::kernel::view;

/// Cosines and sines of all positions of one sequence length.
#[derive(Debug)]
pub struct Rotary {
    /// `[S, H/2]`, accumulation dtype.
    cos: Tensor,
    /// `[S, H/2]`, accumulation dtype.
    sin: Tensor,
    num_heads: i64,
    head_dim: i64,
    /// The same tables for the CPU kernel, and what it needs to know of a row.
    kernel: (Rope, QkvLayout),
}

/// Forward turns by the position's angle, backward (the transpose) by its negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// By the angle.
    Forward,
    /// By the negative angle.
    Backward,
}

/// A rotation of the rows of one micro-batch, done by the product that makes them.
#[derive(Debug)]
struct Rows<'a> {
    rope: &'a Rope,
    layout: QkvLayout,
    positions: Positions<'a>,
}

impl Finish for Rows<'_> {
    fn finish(&self, first_row: usize, rows: &mut [bf16]) {
        self.rope.apply_to_rows((first_row, rows), self.layout, self.positions);
    }
}

impl Rotary {
    /// Tables for `sequence_length` positions: the angle of position `t`, pair `i` is `t` times the
    /// pair's frequency, computed in f64. `frequencies` come with the factor on cosines and sines.
    pub fn new(
        compute: &Compute,
        spec: &DecoderSpec,
        (frequencies, scale): (&[f64], f64),
        sequence_length: usize,
    ) -> Self {
        let head_dim = spec.head_dim as i64;
        let options = (Kind::Double, tch::Device::Cpu);
        let pairs = Tensor::from_slice(frequencies);
        let angles = Tensor::arange(sequence_length as i64, options).outer(&pairs);
        let place = |table: Tensor| table.to_kind(compute.accumulation()).to_device(compute.device);
        // The rotation covers the q heads and the k heads, which lie side by side.
        let num_heads = (spec.num_heads + spec.num_kv_heads) as i64;
        let layout = QkvLayout {
            num_attention_heads: spec.num_heads,
            num_key_value_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
        };
        let kernel = (Rope::with_frequencies(frequencies, scale, sequence_length), layout);
        Self {
            cos: place(angles.cos() * scale),
            sin: place(angles.sin() * scale),
            num_heads,
            head_dim,
            kernel,
        }
    }

    /// Rotated q, k and v of `x`: what [`Rotary::turn`] makes of `projection`'s result.
    ///
    /// # Shapes
    /// - `x`: `[B * S, D]`; returns `[B * S, (N + 2 K) * H]`
    pub fn project(
        &self,
        (compute, weights): (&Compute, &Weights<'_>),
        projection: &Projection,
        x: &Tensor,
        attention: &Attention<'_>,
    ) -> Tensor {
        if compute.has_kernels() {
            let Turned { rope, positions } = self.turned(attention);
            let rows = Rows { rope, layout: self.kernel.1, positions };
            if let Some(qkv) = projection.forward_finished(compute, weights, x, &rows) {
                return qkv;
            }
        }
        let mut qkv = projection.forward(compute, weights, x);
        self.turn(compute, &mut qkv, attention, Turn::Forward);
        qkv
    }

    /// The rotation for the CPU's kernels, whose lists of positions lie in this process's memory.
    pub(super) fn turned<'a>(&'a self, attention: &Attention<'a>) -> Turned<'a> {
        let listed = attention.segments.map(|segments| segments.position_ids());
        let counted = Positions::Counted(attention.sequence_length as usize);
        let positions = listed.map_or(counted, |listed| Positions::Listed(view::slice(listed)));
        Turned { rope: &self.kernel.0, positions }
    }

    /// Rotates the q and k heads of a fused `qkv` in place, by their positions in their rows or,
    /// where rows are cut, in their segments.
    ///
    /// # Shapes
    /// - `qkv`: `[B * S, (N + 2 K) * H]` with `S` at most the tables' length
    pub fn turn(&self, compute: &Compute, qkv: &mut Tensor, attention: &Attention<'_>, turn: Turn) {
        let Attention { sequence_length, segments, .. } = *attention;
        let listed = segments.map(|segments| segments.position_ids());
        if let Some(fused) = compute.fused(self.head_dim / 2) {
            let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
            let tables = (&self.cos, &self.sin);
            return fused.rotate(qkv, (self.num_heads, sign), tables, (sequence_length, listed));
        }
        if compute.has_kernels() {
            let (Turned { rope, positions }, layout) = (self.turned(attention), self.kernel.1);
            return per_element!(compute, E => {
                let qkv = view::slice_mut::<E>(qkv);
                match turn {
                    Turn::Forward => rope.apply(&compute.pool, qkv, layout, positions),
                    Turn::Backward => rope.apply_backward(&compute.pool, qkv, layout, positions),
                }
            });
        }
        let width = self.num_heads * self.head_dim;
        let half = self.head_dim / 2;
        let heads = qkv.narrow(1, 0, width).to_kind(compute.accumulation()).view([
            -1,
            sequence_length,
            self.num_heads,
            self.head_dim,
        ]);
        let rows = |table: &Tensor| match listed {
            None => table.narrow(0, 0, sequence_length).view([1, sequence_length, 1, half]),
            Some(listed) => table.index_select(0, listed).view([-1, sequence_length, 1, half]),
        };
        let (cos, sin) = (rows(&self.cos), rows(&self.sin));
        let sin = if turn == Turn::Forward { sin } else { -sin };
        let (first, second) = (heads.narrow(3, 0, half), heads.narrow(3, half, half));
        let turned =
            Tensor::cat(&[&first * &cos - &second * &sin, &second * &cos + &first * &sin], 3);
        qkv.narrow(1, 0, width).copy_(&turned.view([-1, width]));
    }
}
