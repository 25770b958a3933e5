//! Shares a product out among threads, in pieces that fit the second-level cache.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: AVX-512 BF16, and rows and panels that no other thread has"
)]
#![allow(unsafe_code, reason = "enters code compiled for instructions that were detected")]

use std::ops::Range;

use super::output::Target;
use super::pack;
use super::tile::{self, LANES, LeftRows, PANEL, TILE_ROWS, TILE_VECTORS};
use super::words::Words;
use super::{Multiplier, Operand, Output};
use crate::kernel::pool::{DisjointMut, Pool};

/// Words along `K` that are multiplied at a time: a panel of them takes less than a quarter of a
/// second-level cache of 1 MiB.
const MAX_WORDS: usize = 1024;
/// Words of a left operand that a thread packs, or sweeps over, at a time: another quarter.
const LEFT_WORDS: usize = 64 * 1024;
/// Words of a right operand that all threads share: a part of a third-level cache. A larger one is
/// packed by each thread panel by panel.
const SHARED_WORDS: usize = 4 * 1024 * 1024;
/// Words along `K` of a panel that a thread packs at a time, where all threads share panels.
const PACKED_WORDS: usize = 256;
/// Words ahead of which rows are asked for that are packed a part at a time.
const PACKED_AHEAD: usize = 12;
/// Rows below which packing a panel would cost too much beside multiplying it.
const MIN_ROWS: usize = 192;
/// Pieces for each thread, where there is a choice: so many even out what they cost.
const PIECES_PER_THREAD: usize = 4;

/// Sums of nothing. They are loaded like others, as a branch would lead through memory.
static NOTHING: Zeros = Zeros([0.0; TILE_ROWS * PANEL]);

#[repr(align(64))]
struct Zeros([f32; TILE_ROWS * PANEL]);

/// One product.
struct Job<'a> {
    left: Operand<'a>,
    right: Operand<'a>,
    target: Target<'a>,
}

/// Rows and panels that a thread computes, and its memory.
struct Piece<'a> {
    job: &'a Job<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
    /// All panels, if they are packed already.
    packed: Option<&'a [u32]>,
    scratch: &'a mut Words,
}

/// Computes `output = left right`; shapes were checked.
pub(super) fn multiply(
    multiplier: &mut Multiplier,
    left: Operand<'_>,
    right: Operand<'_>,
    output: Output<'_>,
) {
    let Multiplier { pool, shared, scratch } = multiplier;
    let job = Job { left, right, target: Target::new(output) };
    let num_panels = right.columns.div_ceil(PANEL);
    let num_tiles = left.rows.div_ceil(TILE_ROWS);
    let wanted = PIECES_PER_THREAD * pool.num_threads();
    let num_words = job.num_words();
    if left.transposed || num_words * right.columns <= SHARED_WORDS {
        let packed = pack_panels(pool, &right, shared);
        let rows_at_a_time = (LEFT_WORDS / num_words.clamp(1, MAX_WORDS)).max(TILE_ROWS);
        let pieces = left.rows.div_ceil(rows_at_a_time).next_multiple_of(pool.num_threads());
        let pieces = pieces.max(wanted).min(num_tiles);
        pool.for_each_with(scratch, pieces, |scratch, piece| {
            let rows = part(num_tiles, left.rows, (piece, pieces));
            let panels = 0..num_panels;
            let piece =
                Piece { job: &job, rows: rows.clone(), panels, packed: Some(packed), scratch };
            run(piece);
            // SAFETY: the piece has all columns of these rows.
            unsafe { job.target.finish(rows, right.columns) };
        });
        return;
    }
    let most = (left.rows / MIN_ROWS).max(1);
    let parts = wanted.div_ceil(num_panels).min(most);
    pool.for_each_with(scratch, num_panels * parts, |scratch, piece| {
        let rows = part(num_tiles, left.rows, (piece / num_panels, parts));
        let panel = piece % num_panels;
        run(Piece { job: &job, rows, panels: panel..panel + 1, packed: None, scratch });
    });
    if job.target.has_finish() {
        let pieces = wanted.min(num_tiles);
        pool.for_each(pieces, |piece| {
            let rows = part(num_tiles, left.rows, (piece, pieces));
            // SAFETY: pieces share no rows, and all are stored.
            unsafe { job.target.finish(rows, right.columns) };
        });
    }
}

/// Rows of part `part.0` of `part.1`, in whole tiles but for the last.
fn part(num_tiles: usize, num_rows: usize, (part, parts): (usize, usize)) -> Range<usize> {
    let edge = |part: usize| (part * num_tiles / parts * TILE_ROWS).min(num_rows);
    edge(part)..edge(part + 1)
}

/// All panels of a right operand, `[panels, K / 2, PANEL]`.
fn pack_panels<'a>(pool: &Pool, right: &Operand<'_>, shared: &'a mut Words) -> &'a [u32] {
    let num_words = right.rows.div_ceil(2);
    let (num_panels, len) = (right.columns.div_ceil(PANEL), num_words * PANEL);
    let words = &mut shared.get(num_panels * len)[..num_panels * len];
    let to = DisjointMut::new(words);
    // Two panels of a row that lies as it is are three whole lines.
    let at_a_time = if right.transposed { 1 } else { 2 };
    let num_chunks = num_words.div_ceil(PACKED_WORDS);
    pool.for_each(num_panels.div_ceil(at_a_time) * num_chunks, |piece| {
        let first = piece / num_chunks * at_a_time;
        let from = piece % num_chunks * PACKED_WORDS;
        let panels = first..num_panels.min(first + at_a_time);
        let words = from..num_words.min(from + PACKED_WORDS);
        // SAFETY: each word of each panel is packed once, and a multiplier is only made where there
        // is AVX-512 BF16.
        unsafe { pack_piece(right, panels, words, &to) };
    });
    words
}

/// # Safety
/// The processor has AVX-512 BF16, and no other thread has these words of these panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pack_piece(
    right: &Operand<'_>,
    panels: Range<usize>,
    words: Range<usize>,
    to: &DisjointMut<'_, u32>,
) {
    let len = right.rows.div_ceil(2) * PANEL;
    let to = |panel, words: &Range<usize>| {
        to.slice(panel * len + words.start * PANEL, words.len() * PANEL)
    };
    if right.transposed {
        for panel in panels {
            pack::right_panel(right, panel, words.clone(), to(panel, &words));
        }
        return;
    }
    let columns = panels.start * PANEL..right.columns.min(panels.end * PANEL);
    for word in words {
        pack::touch_rows(right, word + PACKED_AHEAD, columns.clone());
        let word = word..word + 1;
        for panel in panels.clone() {
            pack::right_panel(right, panel, word.clone(), to(panel, &word));
        }
    }
}

fn run(piece: Piece<'_>) {
    // SAFETY: a multiplier is only made where there is AVX-512 BF16, and pieces of one product
    // share no rows of the same panels.
    unsafe { run_piece(piece) }
}

/// # Safety
/// The processor has AVX-512 BF16, and no other piece has these rows and panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn run_piece(piece: Piece<'_>) {
    let Piece { job, rows, panels, packed, scratch } = piece;
    let num_words = job.num_words();
    let num_chunks = num_words.div_ceil(MAX_WORDS);
    let step = num_words.div_ceil(num_chunks.max(1));
    let packs_left = job.left.transposed;
    let own_words = if packs_left { rows.len().next_multiple_of(TILE_ROWS) } else { PANEL } * step;
    let partial_words = if num_chunks > 1 { rows.len() * PANEL * panels.len() } else { 0 };
    let (own, partial) = scratch.get(own_words + partial_words).split_at_mut(own_words);
    for from in (0..num_words).step_by(step.max(1)) {
        let words = from..num_words.min(from + step);
        if packs_left {
            pack::left_tiles(&job.left, rows.clone(), words.clone(), own);
        }
        for panel in panels.clone() {
            let right = match packed {
                Some(packed) => packed[(panel * num_words + from) * PANEL..].as_ptr(),
                None => {
                    pack::right_panel(&job.right, panel, words.clone(), own);
                    own.as_ptr()
                }
            };
            let partial = match num_chunks {
                1 => std::ptr::null_mut(),
                _ => partial[(panel - panels.start) * rows.len() * PANEL..].as_mut_ptr().cast(),
            };
            let left = if packs_left { Some(own.as_ptr()) } else { None };
            let sweep = Sweep { job, left, right, words: words.clone(), partial };
            sweep.over(rows.clone(), panel);
        }
    }
}

/// One panel, or a part of it along `K`, against some rows.
struct Sweep<'a> {
    job: &'a Job<'a>,
    /// Packed tiles, unless the left operand is read where it lies.
    left: Option<*const u32>,
    right: *const u32,
    words: Range<usize>,
    /// Sums of earlier words `[rows, PANEL]`; null where there is one part.
    partial: *mut f32,
}

impl Sweep<'_> {
    #[inline(always)]
    unsafe fn over(&self, rows: Range<usize>, panel: usize) {
        let width = self.job.right.columns - panel * PANEL;
        match width.div_ceil(LANES) {
            1 => self.tiles::<1>(rows, panel),
            2 => self.tiles::<2>(rows, panel),
            _ => self.tiles::<TILE_VECTORS>(rows, panel),
        }
    }

    #[inline(always)]
    unsafe fn tiles<const N: usize>(&self, rows: Range<usize>, panel: usize) {
        for row in rows.clone().step_by(TILE_ROWS) {
            let mut at = (row - rows.start, row, panel);
            let mut rest = rows.end - row;
            if rest >= TILE_ROWS {
                self.tile::<TILE_ROWS, N>(at);
                continue;
            }
            // What is left over, in as few pieces as one of each size makes.
            while rest > 0 {
                let count = match rest {
                    4.. => self.tile::<4, N>(at),
                    2.. => self.tile::<2, N>(at),
                    _ => self.tile::<1, N>(at),
                };
                at = (at.0 + count, at.1 + count, panel);
                rest -= count;
            }
        }
    }

    /// `M` rows from row `offset` of the piece on, which is row `row` of the product; gives `M`.
    #[inline(always)]
    unsafe fn tile<const M: usize, const N: usize>(
        &self,
        (offset, row, panel): (usize, usize, usize),
    ) -> usize {
        let (job, is_last) = (self.job, self.words.end == self.job.num_words());
        let partial = self.partial.wrapping_add(offset * PANEL);
        if is_last {
            job.target.prefetch(row..row + M, panel, job.right.columns);
        }
        let before = if self.words.start == 0 { NOTHING.0.as_ptr() } else { partial.cast_const() };
        let mut sums = tile::load::<M, N>(before);
        // A row of odd length that is read in place ends with a word of its own.
        let apart = is_last && self.left.is_none() && !job.left.columns.is_multiple_of(2);
        let num_words = self.words.len() - usize::from(apart);
        sums = tile::add_product(sums, self.left_rows(offset, row), self.right, num_words);
        if apart {
            let last = |row: usize| job.left.elements[(row + 1) * job.left.columns - 1];
            let words: [u32; M] = std::array::from_fn(|m| u32::from(last(row + m).to_bits()));
            let (words, word_bytes) = (words.as_ptr().cast(), 0);
            let left = LeftRows { words, row_bytes: size_of::<u32>(), word_bytes };
            sums = tile::add_product(sums, left, self.right.add(num_words * PANEL), 1);
        }
        if is_last {
            job.target.put(sums, (row, panel), job.right.columns);
        } else {
            tile::store(partial, sums);
        }
        M
    }

    #[inline(always)]
    unsafe fn left_rows(&self, offset: usize, row: usize) -> LeftRows {
        const WORD: usize = size_of::<u32>();
        match self.left {
            Some(tiles) => LeftRows {
                words: tiles
                    .add(offset / TILE_ROWS * TILE_ROWS * self.words.len() + offset % TILE_ROWS)
                    .cast(),
                row_bytes: WORD,
                word_bytes: TILE_ROWS * WORD,
            },
            None => {
                let columns = self.job.left.columns;
                let first = &self.job.left.elements[row * columns + 2 * self.words.start..];
                LeftRows {
                    words: first.as_ptr().cast(),
                    row_bytes: columns * (WORD / 2),
                    word_bytes: WORD,
                }
            }
        }
    }
}

impl Job<'_> {
    /// Words along `K`.
    #[inline(always)]
    fn num_words(&self) -> usize {
        self.left.columns.div_ceil(2)
    }
}
