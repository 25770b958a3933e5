//! Backward pass: the weights are computed again, block by block, from the stored logarithmic sums.
//!
//! Dao et al. 2022, arXiv:2205.14135, Algorithm 4, transposed as in [`super::forward`]. With
//! `p = 2^(s - lse)` and `delta = sum over the head dim of d_out * out`:
//! `dv = p^T d_out`, `ds = p * (d_out v^T - delta)`, `dq = scale * ds k`, `dk = scale * ds^T q`.
//! Names: `R` rows of a block (queries), `C` its columns (keys), `H` padded head dim.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has the one contract stated at the trait Isa"
)]
#![allow(unsafe_code, reason = "vector intrinsics, raw loads, disjoint rows of the gradient")]

use super::Turned;
use super::element::Element;
use super::forward::{as_words, row_vector};
use super::geometry::{Geometry, Units};
use super::isa::{Isa, Task};
use super::mask::{Mask, Sight};
use super::operand::{BLOCK, Rows, across, across_transposed, transpose};
use super::product::{Accumulation, Panel, Span};
use super::score_gradient::GradientStrips;
use super::segments::Segments;
use super::workspace::Scratch;
use crate::kernel::pool::DisjointMut;

/// What the chunks of one call share.
pub(super) struct Backward<'a, E> {
    pub(super) geometry: Geometry,
    pub(super) segments: Option<&'a Segments>,
    pub(super) qkv: &'a [E],
    pub(super) out: &'a [E],
    pub(super) lse: &'a [f32],
    pub(super) d_out: &'a [E],
    pub(super) d_qkv: DisjointMut<'a, E>,
    pub(super) turned: Option<Turned<'a>>,
}

/// Which gradients a chunk computes. Each element's sum runs in the same order in all of them.
#[derive(Clone, Copy)]
pub(super) enum Share {
    /// All of one key head and its query heads: 5 products for each pair of blocks.
    Everything,
    /// Those of the keys and values of every `num_parts`th column block: 4 products.
    Columns { part: usize, num_parts: usize },
    /// Those of the queries of every `num_parts`th unit: 3 products.
    Rows { part: usize, num_parts: usize },
}

impl Share {
    fn units(self, geometry: &Geometry) -> Units {
        match self {
            Self::Rows { part, num_parts } => geometry.units(part, num_parts),
            Self::Everything | Self::Columns { .. } => geometry.units(0, 1),
        }
    }

    fn has_column(self, block: usize) -> bool {
        match self {
            Self::Columns { part, num_parts } => block % num_parts == part,
            Self::Everything | Self::Rows { .. } => true,
        }
    }

    fn has_queries(self) -> bool {
        !matches!(self, Self::Columns { .. })
    }

    fn has_keys(self) -> bool {
        !matches!(self, Self::Rows { .. })
    }
}

/// One chunk.
pub(super) struct BackwardChunk<'a, E> {
    pub(super) call: &'a Backward<'a, E>,
    pub(super) sequence: usize,
    pub(super) kv_head: usize,
    pub(super) share: Share,
    pub(super) scratch: &'a mut Scratch,
}

/// A thread's memory, see [`super::operand`] for the layouts.
struct Buffers<'a> {
    /// All blocks of keys `[blocks, C, W]`, `along` and (`[blocks, H, C / P]`) `across` transposed.
    k_along: &'a mut [u32],
    k_across: &'a mut [u32],
    /// All blocks of values `[blocks, C, W]`, `along`.
    v_along: &'a mut [u32],
    /// Gradients of all keys and values, `[blocks, C, H]`.
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// One block on its way to another layout.
    staged: &'a mut [u32],
    /// Queries and output gradients, `along` transposed `[W, R]` and `across` `[R / P, H]`.
    q_along: &'a mut [u32],
    q_across: &'a mut [u32],
    d_out_along: &'a mut [u32],
    d_out_across: &'a mut [u32],
    /// Weights `[C, R / P]` as a left operand.
    weights: &'a mut [u32],
    /// Gradients of the scores, as a left operand `[C, R / P]` and as a right one `[C / P, R]`.
    ds_left: &'a mut [u32],
    ds_right: &'a mut [u32],
    /// Gradient of the queries `[H, R]`, and its rows `[R, H]`.
    dq: &'a mut [f32],
    dq_rows: &'a mut [u32],
    /// Minus the logarithmic sums in units of log2; minus infinity past the sequence.
    minus_lse: &'a mut [f32; BLOCK],
    delta: &'a mut [f32; BLOCK],
}

impl<'a> Buffers<'a> {
    fn new<I: Isa>(geometry: &Geometry, scratch: &'a mut Scratch) -> Self {
        let wide = BLOCK * geometry.padded_dim;
        let (block, square) = (wide / I::PAIR, BLOCK * BLOCK / I::PAIR);
        let num_blocks = geometry.num_blocks();
        let (all, sums) = (num_blocks * block, num_blocks * wide);
        let num_words = 3 * all + 2 * sums + 5 * block + 3 * square + 2 * wide + 2 * BLOCK;
        let mut arena = scratch.arena(num_words);
        Self {
            k_along: arena.words(all),
            k_across: arena.words(all),
            v_along: arena.words(all),
            dk: arena.floats(sums),
            dv: arena.floats(sums),
            staged: arena.words(block),
            q_along: arena.words(block),
            q_across: arena.words(block),
            d_out_along: arena.words(block),
            d_out_across: arena.words(block),
            weights: arena.words(square),
            ds_left: arena.words(square),
            ds_right: arena.words(square),
            dq: arena.floats(wide),
            dq_rows: arena.words(wide),
            minus_lse: row_vector(&mut arena),
            delta: row_vector(&mut arena),
        }
    }
}

/// One row block of one query head.
#[derive(Clone, Copy)]
struct Place {
    sequence: usize,
    head: usize,
    row_block: usize,
}

impl<E: Element> Task for BackwardChunk<'_, E> {
    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self { call, sequence, kv_head, share, scratch } = self;
        let geometry = &call.geometry;
        let mut buffers = Buffers::new::<I>(geometry, scratch);
        let keys = geometry.slot(call.qkv, sequence, geometry.key_slot(kv_head));
        let values = geometry.slot(call.qkv, sequence, geometry.value_slot(kv_head));
        for block in (0..geometry.num_blocks()).filter(|&block| share.has_column(block)) {
            pack_columns::<I, E>(&mut buffers, &keys, &values, block);
        }
        let sight = Sight::new(geometry.window, call.segments, sequence);
        for unit in share.units(geometry) {
            let (member, row_block) = geometry.unit(unit);
            let head = kv_head * geometry.group_size() + member;
            let place = Place { sequence, head, row_block };
            pack_rows::<I, E>(call, &mut buffers, place);
            let columns = sight.blocks(row_block);
            for column_block in columns.filter(|&block| share.has_column(block)) {
                let mask = Mask::new(row_block, column_block, sight);
                block_pair::<I>(geometry, &mut buffers, column_block, mask, share);
            }
            if share.has_queries() {
                transpose::<I>(as_words(buffers.dq), geometry.padded_dim, buffers.dq_rows);
                let slot = (sequence, head);
                write_block(call, buffers.dq_rows, slot, row_block, geometry.scale);
            }
        }
        if share.has_keys() {
            write_columns(call, &buffers, sequence, kv_head, share);
        }
    }
}

/// Packs block `block` of the keys and values, and clears their gradients.
#[inline(always)]
unsafe fn pack_columns<I: Isa, E: Element>(
    buffers: &mut Buffers<'_>,
    keys: &Rows<'_, E>,
    values: &Rows<'_, E>,
    block: usize,
) {
    let len = buffers.staged.len();
    let along = &mut buffers.k_along[block * len..][..len];
    keys.prefetch::<I>(block + 1);
    values.prefetch::<I>(block + 1);
    keys.pack_along::<I>(block, along);
    transpose::<I>(along, BLOCK, buffers.staged);
    across_transposed::<I>(buffers.staged, &mut buffers.k_across[block * len..][..len]);
    values.pack_along::<I>(block, &mut buffers.v_along[block * len..][..len]);
    let wide = buffers.dq.len();
    buffers.dk[block * wide..][..wide].fill(0.0);
    buffers.dv[block * wide..][..wide].fill(0.0);
}

/// Packs the queries and output gradients of `place`, and all that its rows need besides.
#[inline(always)]
unsafe fn pack_rows<I: Isa, E: Element>(
    call: &Backward<'_, E>,
    buffers: &mut Buffers<'_>,
    place: Place,
) {
    let Place { sequence, head, row_block } = place;
    let geometry = &call.geometry;
    let queries = geometry.slot(call.qkv, sequence, head);
    let d_out = geometry.out_rows(call.d_out, sequence, head);
    let out = geometry.out_rows(call.out, sequence, head);
    queries.pack_along::<I>(row_block, buffers.staged);
    transpose::<I>(buffers.staged, BLOCK, buffers.q_along);
    across::<I>(buffers.staged, buffers.q_across);
    d_out.pack_along::<I>(row_block, buffers.staged);
    transpose::<I>(buffers.staged, BLOCK, buffers.d_out_along);
    across::<I>(buffers.staged, buffers.d_out_across);

    let first = row_block * BLOCK;
    let count = queries.block_len(row_block);
    let lse = &call.lse[geometry.lse_start(sequence, head) + first..][..count];
    // Minus infinity gives the rows past the sequence weights of 0.
    buffers.minus_lse[count..].fill(f32::NEG_INFINITY);
    buffers.delta[count..].fill(0.0);
    for (row, lse) in lse.iter().enumerate() {
        buffers.minus_lse[row] = -lse * std::f32::consts::LOG2_E;
        buffers.delta[row] = dot(d_out.row(first + row), out.row(first + row));
    }
    for rows in [queries, d_out, out] {
        rows.prefetch::<I>(row_block + 1);
    }
    buffers.dq.fill(0.0);
}

/// The sum of the products, in a fixed order that vectors can follow.
#[inline(always)]
fn dot<E: Element>(a: &[E], b: &[E]) -> f32 {
    let mut sums = [0.0; 16];
    let (a_chunks, a_rest) = a.as_chunks::<16>();
    let (b_chunks, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a.widen() * b.widen();
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a.widen() * b.widen()).sum();
    sums.iter().sum::<f32>() + rest
}

/// Adds what the packed rows and block `column_block` give to `dq`, `dk` and `dv`, as `share` asks.
#[inline(always)]
unsafe fn block_pair<I: Isa>(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    column_block: usize,
    mask: Mask<'_>,
    share: Share,
) {
    let (words, lanes) = (buffers.staged.len() / BLOCK, geometry.padded_dim);
    let block = column_block * buffers.staged.len();
    let left = |words: &[u32], stride: usize| Panel { words: words.as_ptr(), stride };
    let strips = GradientStrips {
        keys: left(&buffers.k_along[block..], words),
        values: left(&buffers.v_along[block..], words),
        queries: left(buffers.q_along, BLOCK),
        d_out: left(buffers.d_out_along, BLOCK),
        num_words: words,
        factor: geometry.log2_scale,
        mask,
        minus_lse: buffers.minus_lse.as_ptr(),
        delta: buffers.delta.as_ptr(),
        weights: buffers.weights.as_mut_ptr(),
        ds_left: buffers.ds_left.as_mut_ptr(),
        ds_right: buffers.ds_right.as_mut_ptr(),
    };
    strips.run::<I>();
    let diagonal = |span| if mask.is_diagonal { span } else { Span::All };
    let row_words = BLOCK / I::PAIR;
    if share.has_keys() {
        let wide = column_block * BLOCK * lanes;
        let mut sums = Accumulation {
            sums: buffers.dv[wide..].as_mut_ptr(),
            stride: lanes,
            num_rows: BLOCK,
            num_lanes: lanes,
            span: diagonal(Span::FromRow),
            lane_factors: std::ptr::null(),
        };
        sums.add::<I>(left(buffers.weights, row_words), left(buffers.d_out_across, lanes));
        sums.sums = buffers.dk[wide..].as_mut_ptr();
        let ds = if I::PAIR == 1 { &*buffers.ds_right } else { &*buffers.ds_left };
        sums.add::<I>(left(ds, row_words), left(buffers.q_across, lanes));
    }
    if share.has_queries() {
        let sums = Accumulation {
            sums: buffers.dq.as_mut_ptr(),
            stride: BLOCK,
            num_rows: lanes,
            num_lanes: BLOCK,
            span: diagonal(Span::UpToLane),
            lane_factors: std::ptr::null(),
        };
        sums.add::<I>(left(&buffers.k_across[block..], row_words), left(buffers.ds_right, BLOCK));
    }
}

/// Writes the gradients of the keys and values that `share` has.
#[inline(always)]
unsafe fn write_columns<E: Element>(
    call: &Backward<'_, E>,
    buffers: &Buffers<'_>,
    sequence: usize,
    kv_head: usize,
    share: Share,
) {
    let geometry = &call.geometry;
    let wide = buffers.dq.len();
    for block in (0..geometry.num_blocks()).filter(|&block| share.has_column(block)) {
        let dk = as_words(&buffers.dk[block * wide..][..wide]);
        let dv = as_words(&buffers.dv[block * wide..][..wide]);
        write_block(call, dk, (sequence, geometry.key_slot(kv_head)), block, geometry.scale);
        write_block(call, dv, (sequence, geometry.value_slot(kv_head)), block, 1.0);
    }
}

/// Writes `factor * rows` (`[BLOCK, H]`, the bits of f32) to block `block` of slot
/// `(sequence, slot)` of the gradient, turned back where queries and keys were turned.
#[inline(always)]
unsafe fn write_block<E: Element>(
    call: &Backward<'_, E>,
    rows: &[u32],
    (sequence, slot): (usize, usize),
    block: usize,
    factor: f32,
) {
    let geometry = &call.geometry;
    let first = block * BLOCK;
    let count = BLOCK.min(geometry.sequence_length - first);
    for (row, values) in rows.chunks_exact(geometry.padded_dim).take(count).enumerate() {
        let start = geometry.qkv_start(sequence, first + row, slot);
        // No other chunk has this slot and row.
        let target = call.d_qkv.slice(start, geometry.head_dim);
        match call.turned {
            Some(Turned { rope, positions }) if slot < geometry.value_slot(0) => {
                let row = sequence * geometry.sequence_length + first + row;
                write_turned(target, values, rope.row(row, positions), factor);
            }
            _ => {
                for (to, &bits) in target.iter_mut().zip(values) {
                    *to = E::narrow(factor * f32::from_bits(bits));
                }
            }
        }
    }
}

/// Writes `factor * values`, the bits of f32, turned by minus the angles of `cos` and `sin`.
#[inline(always)]
fn write_turned<E: Element>(
    target: &mut [E],
    values: &[u32],
    (cos, sin): (&[f32], &[f32]),
    factor: f32,
) {
    let half = target.len() / 2;
    let (first, second) = target.split_at_mut(half);
    let (x, y) = values[..2 * half].split_at(half);
    let (cos, sin, second) = (&cos[..half], &sin[..half], &mut second[..half]);
    for i in 0..half {
        let (x, y) = (factor * f32::from_bits(x[i]), factor * f32::from_bits(y[i]));
        first[i] = E::narrow(x * cos[i] + y * sin[i]);
        second[i] = E::narrow(y * cos[i] - x * sin[i]);
    }
}
