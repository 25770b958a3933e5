//! Causal grouped-query attention on the CPU, forward and backward, in blocks that fit the cache.
//!
//! Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691; grouped queries: Ainslie et al. 2023,
//! arXiv:2305.13245. The scores are never stored: the forward pass keeps one number a row, and the
//! backward pass computes the weights again from it.
//!
//! What each file does: `forward` and `backward` (with `score_gradient`) are the two passes over blocks;
//! `operand` packs blocks into the layouts that the products of `product` read; `mask` says which keys
//! a query sees, `segments` where packed sequences are cut; `geometry` where things lie; `isa` has the vector operations of each [`Level`].
#![allow(unsafe_code, reason = "enters code compiled for instructions that were detected")]

mod backward;
mod element;
mod forward;
mod geometry;
mod isa;
mod level;
mod mask;
mod operand;
mod product;
mod score_gradient;
mod segments;
mod workspace;

#[cfg(test)]
mod tests;

pub use element::Element;
pub use level::Level;
pub use segments::Segments;
pub use workspace::Workspace;

use self::backward::{Backward, BackwardChunk, Share};
use self::forward::{Forward, ForwardChunk};
use self::geometry::Geometry;
use self::isa::{Isa, Task};
use super::pool::DisjointMut;
use super::rope::{Positions, Rope};

/// Chunks for each thread, where there is a choice: so many even out what they cost.
const CHUNKS_PER_THREAD: usize = 4;

/// Sizes of one attention call. `B` batch, `T` sequence length, `N` query heads, `K` key heads, `H`
/// head dim.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// `B`, sequences.
    pub batch: usize,
    /// `T`, positions of each sequence, any number from 1.
    pub sequence_length: usize,
    /// `N`, query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// `K`, key and value heads; query head `n` reads key head `n / (N / K)`.
    pub num_kv_heads: usize,
    /// `H`, any number from 1; up to the next multiple of 16 it costs the same.
    pub head_dim: usize,
    /// Multiplies `q . k`, usually `1 / sqrt(H)`.
    pub scale: f32,
    /// How many positions a query sees, its own among them; `None` for all before it.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Elements of `qkv`: `B * T * (N + 2 K) * H`.
    #[must_use]
    pub fn qkv_len(&self) -> usize {
        let num_slots = self.num_heads + 2 * self.num_kv_heads;
        self.batch * self.sequence_length * num_slots * self.head_dim
    }

    /// Elements of `out`: `B * T * N * H`.
    #[must_use]
    pub fn out_len(&self) -> usize {
        self.batch * self.sequence_length * self.num_heads * self.head_dim
    }

    /// Elements of `lse`: `B * N * T`.
    #[must_use]
    pub fn lse_len(&self) -> usize {
        self.batch * self.num_heads * self.sequence_length
    }

    fn check(&self) {
        assert!(self.sequence_length > 0 && self.head_dim > 0, "{self:?} has an empty dimension");
        assert!(self.num_kv_heads > 0 && self.num_heads > 0, "{self:?} has no heads");
        let (heads, kv_heads) = (self.num_heads, self.num_kv_heads);
        assert!(heads.is_multiple_of(kv_heads), "{kv_heads} key heads divide {heads} query heads");
        assert!(self.window != Some(0), "a window holds at least the query's own position");
    }

    fn check_segments(&self, segments: Option<&Segments>) {
        let fit = |segments: &Segments| segments.fit(self.batch, self.sequence_length);
        assert!(segments.is_none_or(fit), "the segments are those of another batch than {self:?}");
    }
}

/// A rotation of the rows of q and k.
#[derive(Clone, Copy)]
pub struct Turned<'a> {
    /// Its tables.
    pub rope: &'a Rope,
    /// The position of each row.
    pub positions: Positions<'a>,
}

/// What the forward pass leaves for the backward pass.
#[derive(Clone, Copy)]
pub struct Saved<'a, E> {
    /// The input of [`forward`].
    pub qkv: &'a [E],
    /// Its first output.
    pub out: &'a [E],
    /// Its second output.
    pub lse: &'a [f32],
}

/// Causal grouped-query attention, `softmax(scale * q k^T + mask) v`.
///
/// At [`Level::Avx512Bf16`] with bf16 elements the weights are rounded to bf16 before they multiply
/// `v`; maxima, sums and exponentials are f32 everywhere. At a given level an output depends on its
/// own sequence and nothing else: not on the number of threads nor on the rest of the batch.
///
/// # Shapes
/// - `qkv`: `[B * T, (N + 2 K) * H]`, query heads, then key heads, then value heads, positions already
///   encoded; bf16 or f32
/// - `out`: `[B * T, N * H]`, written
/// - `lse`: `[B, N, T]` f32, written: natural logarithm of the sum of exponentials of each row
///
/// A query sees keys of its own segment only; `None` makes each sequence one segment. Blocks of
/// keys that no query of a block sees cost nothing.
///
/// # Panics
/// If a slice is not as long as `shape` says, `shape` is not as its fields say, or the segments
/// are those of another shape.
///
/// # References
/// Dao 2023, arXiv:2307.08691, Algorithm 1.
pub fn forward<E: Element>(
    workspace: &mut Workspace,
    (shape, segments): (&AttentionShape, Option<&Segments>),
    qkv: &[E],
    out: &mut [E],
    lse: &mut [f32],
) {
    shape.check();
    shape.check_segments(segments);
    assert_eq!(qkv.len(), shape.qkv_len(), "qkv is [B * T, (N + 2 K) * H] of {shape:?}");
    assert_eq!(out.len(), shape.out_len(), "out is [B * T, N * H] of {shape:?}");
    assert_eq!(lse.len(), shape.lse_len(), "lse is [B, N, T] of {shape:?}");
    let geometry = Geometry::new(shape);
    let Workspace { pool, level, scratch } = workspace;
    let num_kv_heads = shape.batch * shape.num_kv_heads;
    let num_units = geometry.group_size() * geometry.num_blocks();
    let wanted = (CHUNKS_PER_THREAD * pool.num_threads()).div_ceil(num_kv_heads.max(1));
    let num_parts = wanted.min(num_units);
    let (out, lse) = (DisjointMut::new(out), DisjointMut::new(lse));
    let call = Forward { geometry, segments, qkv, out, lse };
    pool.for_each_with(scratch, num_kv_heads * num_parts, |scratch, chunk| {
        let (at, part) = (chunk / num_parts, chunk % num_parts);
        let (sequence, kv_head) = (at / shape.num_kv_heads, at % shape.num_kv_heads);
        let units = geometry.units(part, num_parts);
        enter::<E, _>(*level, ForwardChunk { call: &call, sequence, kv_head, units, scratch });
    });
}

/// Gradient of [`forward`] with respect to `qkv`.
///
/// At [`Level::Avx512Bf16`] with bf16 elements the weights and the gradients of the scores are rounded
/// to bf16 before they are multiplied; all sums are f32. Depends on threads and batch as little as the
/// forward pass.
///
/// # Shapes
/// - `saved`: the input and the outputs of the forward pass at the same `shape` and segments
/// - `d_out`: `[B * T, N * H]`, gradient of `out`
/// - `d_qkv`: `[B * T, (N + 2 K) * H]`, written in full; with `turned`, by which q and k were turned
///   before the forward pass, it is the gradient before that
///
/// # Panics
/// As [`forward`].
///
/// # References
/// Dao et al. 2022, arXiv:2205.14135, Algorithm 4.
pub fn backward<E: Element>(
    workspace: &mut Workspace,
    (shape, segments): (&AttentionShape, Option<&Segments>),
    saved: Saved<'_, E>,
    d_out: &[E],
    (d_qkv, turned): (&mut [E], Option<Turned<'_>>),
) {
    shape.check();
    shape.check_segments(segments);
    let Saved { qkv, out, lse } = saved;
    assert_eq!(qkv.len(), shape.qkv_len(), "qkv is [B * T, (N + 2 K) * H] of {shape:?}");
    assert_eq!(d_qkv.len(), shape.qkv_len(), "d_qkv is [B * T, (N + 2 K) * H] of {shape:?}");
    assert_eq!(out.len(), shape.out_len(), "out is [B * T, N * H] of {shape:?}");
    assert_eq!(d_out.len(), shape.out_len(), "d_out is [B * T, N * H] of {shape:?}");
    assert_eq!(lse.len(), shape.lse_len(), "lse is [B, N, T] of {shape:?}");
    let geometry = Geometry::new(shape);
    let Workspace { pool, level, scratch } = workspace;
    let num_kv_heads = shape.batch * shape.num_kv_heads;
    let shares = backward_shares(&geometry, num_kv_heads, pool.num_threads());
    let d_qkv = DisjointMut::new(d_qkv);
    let call = Backward { geometry, segments, qkv, out, lse, d_out, d_qkv, turned };
    pool.for_each_with(scratch, num_kv_heads * shares.len(), |scratch, chunk| {
        let (at, share) = (chunk / shares.len(), shares[chunk % shares.len()]);
        let (sequence, kv_head) = (at / shape.num_kv_heads, at % shape.num_kv_heads);
        enter::<E, _>(*level, BackwardChunk { call: &call, sequence, kv_head, share, scratch });
    });
}

/// How the backward pass of each key head is divided. Changes what the pass costs, never its result.
fn backward_shares(geometry: &Geometry, num_kv_heads: usize, num_threads: usize) -> Vec<Share> {
    // Undivided, a key head costs 5 products, but threads without one wait; divided, it costs 7.
    let undivided = 5 * num_kv_heads.div_ceil(num_threads) * num_threads;
    if num_kv_heads == 0 || undivided <= 7 * num_kv_heads {
        return vec![Share::Everything];
    }
    let wanted = (CHUNKS_PER_THREAD * num_threads).div_ceil(num_kv_heads);
    let num_columns = wanted.min(geometry.num_blocks());
    let num_rows = wanted.min(geometry.num_blocks() * geometry.group_size());
    let columns = (0..num_columns).map(|part| Share::Columns { part, num_parts: num_columns });
    let rows = (0..num_rows).map(|part| Share::Rows { part, num_parts: num_rows });
    columns.chain(rows).collect()
}

/// Runs `task` with the instructions of `level` for elements of type `E`.
fn enter<E: Element, T: Task>(level: Level, task: T) {
    // SAFETY: a `Workspace` is only made with a level that the processor has.
    unsafe {
        match (level, E::IS_BF16) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512Bf16, true) => isa::avx512::Avx512::<2>::enter(task),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512Bf16 | Level::Avx512, _) => isa::avx512::Avx512::<1>::enter(task),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, _) => isa::avx2::Avx2::enter(task),
            _ => isa::portable::Portable::enter(task),
        }
    }
}
