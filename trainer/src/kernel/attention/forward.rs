//! Forward pass: blocks of queries against blocks of keys, with a running maximum and sum.
//!
//! Dao et al. 2022, arXiv:2205.14135, Algorithm 1, with the loops of Dao 2023, arXiv:2307.08691,
//! Algorithm 1. Everything is transposed: a vector holds one key's scores with as many queries as
//! there are lanes, so that maxima and sums run from vector to vector and never inside one.
//! Names: `R` rows of a block (queries), `C` its columns (keys), `H` padded head dim.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has the one contract stated at the trait Isa"
)]
#![allow(unsafe_code, reason = "vector intrinsics, raw loads, disjoint rows of the output")]

use super::element::Element;
use super::geometry::{Geometry, Units};
use super::isa::{Isa, Task, exp2};
use super::mask::{Mask, Sight};
use super::operand::{BLOCK, Rows, across_transposed, transpose};
use super::product::{Accumulation, Panel, Span, tile};
use super::segments::Segments;
use super::workspace::{Arena, Scratch};
use crate::kernel::pool::DisjointMut;

/// Below every finite score, and finite, so that a row without a visible key so far gives no NaN.
const LOWEST: f32 = -1.0e30;

/// What the chunks of one call share.
pub(super) struct Forward<'a, E> {
    pub(super) geometry: Geometry,
    pub(super) segments: Option<&'a Segments>,
    pub(super) qkv: &'a [E],
    pub(super) out: DisjointMut<'a, E>,
    pub(super) lse: DisjointMut<'a, f32>,
}

/// One chunk: some row blocks of all query heads that share a key head.
pub(super) struct ForwardChunk<'a, E> {
    pub(super) call: &'a Forward<'a, E>,
    pub(super) sequence: usize,
    pub(super) kv_head: usize,
    pub(super) units: Units,
    pub(super) scratch: &'a mut Scratch,
}

/// A thread's memory, see [`super::operand`] for the layouts.
struct Buffers<'a> {
    /// All blocks of keys, `along`, `[blocks, C, W]`.
    k_along: &'a mut [u32],
    /// All blocks of values, `across` transposed, `[blocks, H, C / P]`.
    v_across: &'a mut [u32],
    /// One block on its way to another layout, twice.
    staged: [&'a mut [u32]; 2],
    /// The queries, `along` transposed, `[W, R]`.
    q_along: &'a mut [u32],
    /// Scores in units of log2, `[C, R]`.
    scores: &'a mut [f32],
    /// Their exponentials as a right operand, `[C / P, R]`.
    weights: &'a mut [u32],
    /// The output, not yet divided by the sum, `[H, R]`.
    out: &'a mut [f32],
    /// The output's rows `[R, H]`.
    out_rows: &'a mut [u32],
    maximum: &'a mut [f32; BLOCK],
    block_maximum: &'a mut [f32; BLOCK],
    sum: &'a mut [f32; BLOCK],
    /// What the sums so far are to be multiplied with, because the maximum has risen.
    decay: &'a mut [f32; BLOCK],
}

impl<'a> Buffers<'a> {
    fn new<I: Isa>(geometry: &Geometry, scratch: &'a mut Scratch) -> Self {
        let block = BLOCK * geometry.padded_dim / I::PAIR;
        let all = geometry.num_blocks() * block;
        let (squares, wide) = (BLOCK * BLOCK, BLOCK * geometry.padded_dim);
        let mut arena = scratch.arena(2 * all + 3 * block + 2 * squares + 2 * wide + 4 * BLOCK);
        Self {
            k_along: arena.words(all),
            v_across: arena.words(all),
            staged: [arena.words(block), arena.words(block)],
            q_along: arena.words(block),
            scores: arena.floats(squares),
            weights: arena.words(squares / I::PAIR),
            out: arena.floats(wide),
            out_rows: arena.words(wide),
            maximum: row_vector(&mut arena),
            block_maximum: row_vector(&mut arena),
            sum: row_vector(&mut arena),
            decay: row_vector(&mut arena),
        }
    }
}

/// One f32 for each row of a block.
pub(super) fn row_vector<'a>(arena: &mut Arena<'a>) -> &'a mut [f32; BLOCK] {
    arena.floats(BLOCK).try_into().expect("floats returns as many as it is asked for")
}

impl<E: Element> Task for ForwardChunk<'_, E> {
    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let call = self.call;
        let geometry = &call.geometry;
        let mut buffers = Buffers::new::<I>(geometry, self.scratch);
        let keys = geometry.slot(call.qkv, self.sequence, geometry.key_slot(self.kv_head));
        let values = geometry.slot(call.qkv, self.sequence, geometry.value_slot(self.kv_head));
        let sight = Sight::new(geometry.window, call.segments, self.sequence);
        let mut num_packed = 0;
        for unit in self.units {
            let (member, row_block) = geometry.unit(unit);
            while num_packed <= row_block {
                pack_block::<I, E>(&mut buffers, &keys, &values, num_packed);
                num_packed += 1;
            }
            let head = self.kv_head * geometry.group_size() + member;
            let queries = geometry.slot(call.qkv, self.sequence, head);
            queries.pack_along::<I>(row_block, buffers.staged[0]);
            queries.prefetch::<I>(row_block + 1);
            keys.prefetch::<I>(num_packed);
            values.prefetch::<I>(num_packed);
            transpose::<I>(buffers.staged[0], BLOCK, buffers.q_along);
            attend::<I>(geometry, &mut buffers, row_block, sight);
            finish::<I>(&mut buffers);
            write_rows(call, &buffers, [self.sequence, head, row_block]);
        }
    }
}

/// Packs block `block` of the keys and of the values.
#[inline(always)]
unsafe fn pack_block<I: Isa, E: Element>(
    buffers: &mut Buffers<'_>,
    keys: &Rows<'_, E>,
    values: &Rows<'_, E>,
    block: usize,
) {
    let [along, transposed] = &mut buffers.staged;
    let len = along.len();
    keys.pack_along::<I>(block, &mut buffers.k_along[block * len..][..len]);
    values.pack_along::<I>(block, along);
    transpose::<I>(along, BLOCK, transposed);
    across_transposed::<I>(transposed, &mut buffers.v_across[block * len..][..len]);
}

/// The queries in `q_along` against all their keys: leaves `out`, `maximum` and `sum`.
#[inline(always)]
unsafe fn attend<I: Isa>(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    row_block: usize,
    sight: Sight<'_>,
) {
    let block_words = buffers.q_along.len();
    buffers.maximum.fill(LOWEST);
    buffers.sum.fill(0.0);
    buffers.out.fill(0.0);
    for column_block in sight.blocks(row_block) {
        let mask = Mask::new(row_block, column_block, sight);
        buffers.block_maximum.copy_from_slice(buffers.maximum);
        let keys = &buffers.k_along[column_block * block_words..][..block_words];
        let strips = ScoreStrips {
            keys: Panel { words: keys.as_ptr(), stride: block_words / BLOCK },
            queries: Panel { words: buffers.q_along.as_ptr(), stride: BLOCK },
            num_words: block_words / BLOCK,
            factor: geometry.log2_scale,
            mask,
            scores: buffers.scores.as_mut_ptr(),
            maximum: buffers.block_maximum.as_mut_ptr(),
        };
        strips.run::<I>();
        exponentiate::<I>(buffers, mask);
        let values = &buffers.v_across[column_block * block_words..][..block_words];
        let accumulation = Accumulation {
            sums: buffers.out.as_mut_ptr(),
            stride: BLOCK,
            num_rows: geometry.padded_dim,
            num_lanes: BLOCK,
            span: if mask.is_diagonal { Span::UpToLane } else { Span::All },
            lane_factors: buffers.decay.as_ptr(),
        };
        let left = Panel { words: values.as_ptr(), stride: BLOCK / I::PAIR };
        accumulation.add::<I>(left, Panel { words: buffers.weights.as_ptr(), stride: BLOCK });
    }
}

/// The scores of one block, four keys at a time.
struct ScoreStrips<'a> {
    keys: Panel,
    queries: Panel,
    num_words: usize,
    factor: f32,
    mask: Mask<'a>,
    scores: *mut f32,
    maximum: *mut f32,
}

impl ScoreStrips<'_> {
    #[inline(always)]
    unsafe fn run<I: Isa>(&self) {
        for column in (0..BLOCK).step_by(4) {
            let mut vector = self.mask.first_vector::<I>(column);
            while vector < BLOCK / I::LANES {
                let count = I::TILE_VECTORS.min(BLOCK / I::LANES - vector);
                match count {
                    4 => self.strip::<I, 4>(column, vector),
                    3 => self.strip::<I, 3>(column, vector),
                    2 => self.strip::<I, 2>(column, vector),
                    _ => self.strip::<I, 1>(column, vector),
                }
                vector += count;
            }
        }
    }

    #[inline(always)]
    unsafe fn strip<I: Isa, const N: usize>(&self, column: usize, vector: usize) {
        let lane = vector * I::LANES;
        let mut sums = [[I::splat(0.0); N]; 4];
        let (keys, queries) = (self.keys.at(column, 0), self.queries.at(0, lane));
        tile::<I, 4, N>(&mut sums, keys, queries, self.num_words);
        let factor = I::splat(self.factor);
        for n in 0..N {
            let lane = lane + n * I::LANES;
            let mut maximum = I::load(self.maximum.add(lane));
            for (m, sums) in sums.iter().enumerate() {
                let scores = self.mask.apply::<I>(I::mul(sums[n], factor), column + m, lane);
                I::store(self.scores.add((column + m) * BLOCK + lane), scores);
                maximum = I::max(maximum, scores);
            }
            I::store(self.maximum.add(lane), maximum);
        }
    }
}

/// Scores to weights `2^(score - maximum)`; brings `maximum`, `decay` and `sum` up to date.
#[inline(always)]
unsafe fn exponentiate<I: Isa>(buffers: &mut Buffers<'_>, mask: Mask<'_>) {
    for lane in (0..BLOCK).step_by(I::LANES) {
        let maximum = I::load(buffers.block_maximum.as_ptr().add(lane));
        let before = I::load(buffers.maximum.as_ptr().add(lane));
        let decay = exp2::<I>(I::sub(before, maximum));
        I::store(buffers.maximum.as_mut_ptr().add(lane), maximum);
        I::store(buffers.decay.as_mut_ptr().add(lane), decay);
        let mut sum = I::mul(I::load(buffers.sum.as_ptr().add(lane)), decay);
        // Keys from here on are masked for all these rows, and `Span::UpToLane` skips them too, but
        // for those that it has to treat together with later rows.
        let end = if mask.is_diagonal { lane + I::LANES } else { BLOCK };
        for column in (0..end).step_by(2) {
            let scores = buffers.scores.as_ptr().add(column * BLOCK + lane);
            let even = exp2::<I>(I::sub(I::load(scores), maximum));
            let odd = exp2::<I>(I::sub(I::load(scores.add(BLOCK)), maximum));
            sum = I::add(sum, I::add(even, odd));
            let to = buffers.weights.as_mut_ptr().add(column / I::PAIR * BLOCK + lane);
            I::store_across(to, BLOCK, even, odd);
        }
        for column in (end..BLOCK).step_by(2) {
            let to = buffers.weights.as_mut_ptr().add(column / I::PAIR * BLOCK + lane);
            I::store_across(to, BLOCK, I::splat(0.0), I::splat(0.0));
        }
        I::store(buffers.sum.as_mut_ptr().add(lane), sum);
    }
}

/// `out / sum` as rows.
#[inline(always)]
unsafe fn finish<I: Isa>(buffers: &mut Buffers<'_>) {
    let mut inverse = [0.0; BLOCK];
    inverse.iter_mut().zip(buffers.sum.iter()).for_each(|(inverse, sum)| *inverse = 1.0 / sum);
    for row in buffers.out.chunks_exact_mut(BLOCK) {
        row.iter_mut().zip(&inverse).for_each(|(value, inverse)| *value *= inverse);
    }
    let (from, num_rows) = (as_words(buffers.out), buffers.out.len() / BLOCK);
    transpose::<I>(from, num_rows, buffers.out_rows);
}

/// The same bits.
#[inline(always)]
pub(super) fn as_words(floats: &[f32]) -> &[u32] {
    // SAFETY: u32 has the size and alignment of f32 and no invalid bits.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), floats.len()) }
}

/// Writes the output's rows and the logarithms of the sums of block `[sequence, head, row_block]`.
#[inline(always)]
unsafe fn write_rows<E: Element>(call: &Forward<'_, E>, buffers: &Buffers<'_>, at: [usize; 3]) {
    let [sequence, head, row_block] = at;
    let geometry = &call.geometry;
    let first = row_block * BLOCK;
    let count = BLOCK.min(geometry.sequence_length - first);
    let rows = buffers.out_rows.chunks_exact(geometry.padded_dim).take(count);
    for (row, values) in rows.enumerate() {
        let start = geometry.out_start(sequence, first + row, head);
        // No other chunk has this head and row.
        let target = call.out.slice(start, geometry.head_dim);
        target.iter_mut().zip(values).for_each(|(to, &bits)| *to = E::narrow(f32::from_bits(bits)));
    }
    // As above.
    let target = call.lse.slice(geometry.lse_start(sequence, head) + first, count);
    for ((to, maximum), sum) in target.iter_mut().zip(buffers.maximum.iter()).zip(&*buffers.sum) {
        *to = maximum * std::f32::consts::LN_2 + sum.ln();
    }
}
