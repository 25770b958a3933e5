//! Brings operands into words: pairs of elements that are neighbors along `K`, the earlier one in
//! the lower bits, as `vdpbf16ps` wants them. An odd `K` ends with a zero.
//!
//! A right operand becomes panels `[K / 2, PANEL]`, with zeros past its columns. A left one whose
//! transpose is stored becomes tiles `[K / 2, TILE_ROWS]`; any other is read where it lies.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: AVX-512 BF16, and pointers that are valid for what is read"
)]
#![allow(unsafe_code, reason = "vector intrinsics and raw loads")]

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::Operand;
use super::tile::{LANES, PANEL, TILE_ROWS};

/// Words along `K` that are packed at a time: so many rows of a wide matrix that their pages and
/// lines are at hand until the next columns of them are read.
const WORDS_AT_A_TIME: usize = 32;

/// Panel `panel` of `right`, words `words`, into `to`.
#[inline(always)]
pub(super) unsafe fn right_panel(
    right: &Operand<'_>,
    panel: usize,
    words: Range<usize>,
    to: &mut [u32],
) {
    let first = panel * PANEL;
    let columns = PANEL.min(right.columns - first);
    assert!(to.len() >= words.len() * PANEL, "a panel's words fit");
    if right.transposed {
        let rows = StoredRows { at: &right.elements[first * right.rows..], len: right.rows };
        rows.transpose(columns, words, to);
        return;
    }
    for (word, to) in words.zip(to.chunks_exact_mut(PANEL)) {
        let (even, odd) = pair_of_rows(right, word);
        for (vector, to) in to.chunks_exact_mut(LANES).enumerate() {
            let at = first + vector * LANES;
            let count = columns.saturating_sub(vector * LANES).min(LANES);
            // Past the last column nothing is read, and zeros are written.
            let at = if count == 0 { 0 } else { at };
            let loaded = interleave(even, odd, at, count);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), loaded);
        }
    }
}

/// Rows `rows` of a left operand whose transpose is stored, words `words`: tiles one after another,
/// each `[words, TILE_ROWS]`.
#[inline(always)]
pub(super) unsafe fn left_tiles(
    left: &Operand<'_>,
    rows: Range<usize>,
    words: Range<usize>,
    to: &mut [u32],
) {
    let tile_words = words.len() * TILE_ROWS;
    let num_tiles = rows.len().div_ceil(TILE_ROWS);
    assert!(left.transposed && to.len() >= num_tiles * tile_words, "the tiles fit");
    // A view of the stored matrix [K, M].
    let stored = Operand { rows: left.columns, columns: left.rows, transposed: false, ..*left };
    for from in words.clone().step_by(WORDS_AT_A_TIME) {
        let until = words.end.min(from + WORDS_AT_A_TIME);
        for row in (2 * until..stored.rows).take(2 * WORDS_AT_A_TIME) {
            touch(&stored.elements[row * stored.columns..][rows.clone()]);
        }
        for tile in 0..num_tiles {
            let first = rows.start + tile * TILE_ROWS;
            let count = TILE_ROWS.min(rows.end - first);
            let to = &mut to[tile * tile_words..][..tile_words];
            for word in from..until {
                let (even, odd) = pair_of_rows(&stored, word);
                let to = to[(word - words.start) * TILE_ROWS..][..TILE_ROWS].as_mut_ptr();
                if count == TILE_ROWS && !odd.is_empty() {
                    interleave_tile(&even[first..], &odd[first..], to);
                } else {
                    let words = interleave(even, odd, first, count);
                    _mm512_mask_storeu_epi32(to.cast(), mask(TILE_ROWS), words);
                }
            }
        }
    }
}

/// As many elements of two rows as a tile has rows, as words.
#[inline(always)]
unsafe fn interleave_tile(even: &[bf16], odd: &[bf16], to: *mut u32) {
    let (even, odd) = (even[..TILE_ROWS].as_ptr(), odd[..TILE_ROWS].as_ptr());
    let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(even.cast()));
    let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(odd.cast()));
    _mm256_storeu_si256(to.cast(), _mm256_or_si256(low, _mm256_slli_epi32::<16>(high)));
}

/// Asks for the lines that hold `elements`, ahead of their use.
#[inline(always)]
pub(super) unsafe fn touch<T>(elements: &[T]) {
    const LINE_BYTES: usize = 64;
    let first = elements.as_ptr().cast::<i8>();
    for offset in (0..size_of_val(elements)).step_by(LINE_BYTES) {
        _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(offset));
    }
    // Wherever the first byte lies in its line.
    _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(size_of_val(elements).saturating_sub(1)));
}

/// Asks for columns `columns` of the rows of word `word`, if there are such rows.
#[inline(always)]
pub(super) unsafe fn touch_rows(stored: &Operand<'_>, word: usize, columns: Range<usize>) {
    for row in 2 * word..stored.rows.min(2 * word + 2) {
        touch(&stored.elements[row * stored.columns..][columns.clone()]);
    }
}

/// Rows `2 word` and `2 word + 1` of a stored matrix; zeros for the second if there is none.
#[inline(always)]
fn pair_of_rows<'a>(stored: &Operand<'a>, word: usize) -> (&'a [bf16], &'a [bf16]) {
    let row = |at: usize| &stored.elements[at * stored.columns..][..stored.columns];
    let even = row(2 * word);
    // No odd row: an empty one, of which nothing is read.
    let odd = if 2 * word + 1 < stored.rows { row(2 * word + 1) } else { &[] };
    (even, odd)
}

/// Elements `at..at + count` of two rows as words; zeros after them, and for a row that is empty.
#[inline(always)]
unsafe fn interleave(even: &[bf16], odd: &[bf16], at: usize, count: usize) -> __m512i {
    let low = _mm512_cvtepu16_epi32(load_some(even, at, count));
    let high = if odd.is_empty() { _mm256_setzero_si256() } else { load_some(odd, at, count) };
    _mm512_or_si512(low, _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high)))
}

/// Elements `at..at + count`, then zeros.
#[inline(always)]
unsafe fn load_some(row: &[bf16], at: usize, count: usize) -> __m256i {
    _mm256_maskz_loadu_epi16(mask(count), row[at..at + count].as_ptr().cast())
}

/// The lowest `count` lanes.
#[inline(always)]
pub(super) fn mask(count: usize) -> __mmask16 {
    if count >= LANES { u16::MAX } else { (1 << count) - 1 }
}

/// Rows of `len` elements that become columns of a panel.
struct StoredRows<'a> {
    at: &'a [bf16],
    len: usize,
}

impl StoredRows<'_> {
    #[inline(always)]
    unsafe fn transpose(&self, count: usize, words: Range<usize>, to: &mut [u32]) {
        for from in words.clone().step_by(LANES) {
            let to = &mut to[(from - words.start) * PANEL..];
            let num_words = LANES.min(words.end - from);
            let whole = num_words == LANES && 2 * (from + LANES) <= self.len;
            for row in (0..PANEL).step_by(LANES) {
                if whole && row + LANES <= count {
                    let source = self.at[row * self.len + 2 * from..].as_ptr();
                    transpose_square(source, self.len, to[row..].as_mut_ptr());
                } else {
                    self.transpose_some(row..row + LANES, (count, from), num_words, &mut to[row..]);
                }
            }
        }
    }

    /// The same one word at a time, with zeros past row `count` and past the rows' ends.
    #[inline(always)]
    fn transpose_some(
        &self,
        rows: Range<usize>,
        (count, from): (usize, usize),
        num_words: usize,
        to: &mut [u32],
    ) {
        for (lane, row) in rows.enumerate() {
            for word in 0..num_words {
                let at = 2 * (from + word);
                let pair = [at, at + 1].map(|at| match row < count && at < self.len {
                    true => u32::from(self.at[row * self.len + at].to_bits()),
                    false => 0,
                });
                to[word * PANEL + lane] = pair[0] | pair[1] << 16;
            }
        }
    }
}

/// 16 rows of 16 words, `row_len` elements apart, into 16 rows of 16 words, a panel's width apart.
#[inline(always)]
unsafe fn transpose_square(from: *const bf16, row_len: usize, to: *mut u32) {
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (row, vector) in rows.iter_mut().enumerate() {
        *vector = _mm512_loadu_si512(from.add(row * row_len).cast());
    }
    // Pairs of rows, then fours of them, word by word within 128 bits.
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = rows;
    for i in 0..4 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        fours[4 * i] = _mm512_unpacklo_epi64(a, c);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // Then the 128-bit parts themselves.
    let mut eights = rows;
    for i in 0..4 {
        eights[i] = _mm512_shuffle_i32x4::<0x88>(fours[i], fours[i + 4]);
        eights[i + 4] = _mm512_shuffle_i32x4::<0xdd>(fours[i], fours[i + 4]);
        eights[i + 8] = _mm512_shuffle_i32x4::<0x88>(fours[i + 8], fours[i + 12]);
        eights[i + 12] = _mm512_shuffle_i32x4::<0xdd>(fours[i + 8], fours[i + 12]);
    }
    for i in 0..8 {
        let first = _mm512_shuffle_i32x4::<0x88>(eights[i], eights[i + 8]);
        let second = _mm512_shuffle_i32x4::<0xdd>(eights[i], eights[i + 8]);
        _mm512_storeu_si512(to.add(i * PANEL).cast(), first);
        _mm512_storeu_si512(to.add((i + 8) * PANEL).cast(), second);
    }
}
