//! Reading and finding codes by permutations of registers (AVX-512 with VBMI): a table of 256
//! entries fits in vector registers, so no element waits for a load from a table in memory.
#![allow(
    unsafe_code,
    reason = "vector instructions on the processors that have them: the standard library has no \
              safe form of permutations across registers"
)]

use super::{CodeBook, QUANTIZED_BLOCK_ELEMENTS};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Codes read at once: one register of bytes.
#[cfg(target_arch = "x86_64")]
const CODES_AT_ONCE: usize = 64;
/// Values quantized at once: one register of floats.
#[cfg(target_arch = "x86_64")]
const VALUES_AT_ONCE: usize = 16;

/// What the permutations look into.
#[derive(Debug)]
pub(super) struct Tables {
    /// Byte `b` of the value of code `c` is `planes[b][c]`.
    planes: [[u8; 256]; 4],
    /// The thresholds as a search tree: from node `h` (the root is 1) on to `2 h + 1` if the
    /// threshold is not above the value, else to `2 h`; below the last level `h - 256` is the code.
    tree: [f32; 256],
}

impl Tables {
    pub(super) const fn new(values: &[f32; 256], thresholds: &[f32; 256]) -> Self {
        let (mut planes, mut tree) = ([[0; 256]; 4], [0.0; 256]);
        let mut code = 0;
        while code < 256 {
            let bytes = values[code].to_bits().to_le_bytes();
            let mut byte = 0;
            while byte < 4 {
                planes[byte][code] = bytes[byte];
                byte += 1;
            }
            code += 1;
        }
        let mut node = 1usize;
        while node < 256 {
            let level = node.ilog2();
            let span = 256 >> level;
            tree[node] = thresholds[(node - (1 << level)) * span + span / 2 - 1];
            node += 1;
        }
        Self { planes, tree }
    }
}

impl CodeBook {
    /// Writes the values of one block, if this processor and length have a vector form.
    #[inline(always)]
    pub(super) fn permuted_values(&self, codes: &[u8], scale: f32, values: &mut [f32]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if codes.len() == QUANTIZED_BLOCK_ELEMENTS && values.len() == codes.len() && is_available()
        {
            // SAFETY: the features were detected, and both slices are a whole block.
            unsafe { dequantize(&self.tables, codes, scale, values) };
            return true;
        }
        let _ = (codes, scale, values);
        false
    }

    /// Writes the codes of one block and returns its scale, if this processor and length have a
    /// vector form.
    #[inline(always)]
    pub(super) fn permuted_codes(&self, values: &[f32], codes: &mut [u8]) -> Option<f32> {
        #[cfg(target_arch = "x86_64")]
        if codes.len() == QUANTIZED_BLOCK_ELEMENTS && values.len() == codes.len() && is_available()
        {
            // SAFETY: the features were detected, and both slices are a whole block.
            return Some(unsafe { quantize(&self.tables, self.zero_code, values, codes) });
        }
        let _ = (values, codes);
        None
    }
}

/// Whether the processor has the instructions (the standard library remembers what it detected).
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi")
}

/// Values of a block: for each byte of a float two permutations of 128 entries, of which the code's
/// highest bit chooses; then the bytes are laid together.
///
/// # Safety
/// Needs the features, and slices of a whole block.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn dequantize(tables: &Tables, codes: &[u8], scale: f32, values: &mut [f32]) {
    // Laying together works within quarters of a register, and leaves quarter `k` of output `j`
    // with the group of four codes `4 k + j`: so the groups are transposed before.
    let transposed = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let scale = _mm512_set1_ps(scale);
    // Loops without closures: a closure in a function of the standard library has its instructions
    // only if that function is inlined first.
    let mut planes = [[_mm512_setzero_si512(); 4]; 4];
    for (registers, plane) in planes.iter_mut().zip(&tables.planes) {
        for (register, bytes) in registers.iter_mut().zip(plane.chunks_exact(CODES_AT_ONCE)) {
            // SAFETY: a chunk has 64 bytes.
            *register = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        }
    }
    for (codes, values) in
        codes.chunks_exact(CODES_AT_ONCE).zip(values.chunks_exact_mut(CODES_AT_ONCE))
    {
        // SAFETY: a chunk has 64 codes.
        let codes = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
        let codes = _mm512_permutexvar_epi32(transposed, codes);
        let (byte_0, byte_1) = (look_up(&planes[0], codes), look_up(&planes[1], codes));
        let (byte_2, byte_3) = (look_up(&planes[2], codes), look_up(&planes[3], codes));
        let low = [_mm512_unpacklo_epi8(byte_0, byte_1), _mm512_unpackhi_epi8(byte_0, byte_1)];
        let high = [_mm512_unpacklo_epi8(byte_2, byte_3), _mm512_unpackhi_epi8(byte_2, byte_3)];
        let floats = [
            _mm512_unpacklo_epi16(low[0], high[0]),
            _mm512_unpackhi_epi16(low[0], high[0]),
            _mm512_unpacklo_epi16(low[1], high[1]),
            _mm512_unpackhi_epi16(low[1], high[1]),
        ];
        for (values, floats) in values.chunks_exact_mut(VALUES_AT_ONCE).zip(floats) {
            let scaled = _mm512_mul_ps(_mm512_castsi512_ps(floats), scale);
            // SAFETY: a chunk has 16 values.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), scaled) };
        }
    }
}

/// One byte of the value of each code.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn look_up(plane: &[__m512i; 4], codes: __m512i) -> __m512i {
    let lower = _mm512_permutex2var_epi8(plane[0], codes, plane[1]);
    let upper = _mm512_permutex2var_epi8(plane[2], codes, plane[3]);
    _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), lower, upper)
}

/// Codes of a block, by eight steps down the tree.
///
/// # Safety
/// Needs the features, and slices of a whole block.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn quantize(tables: &Tables, zero_code: u8, values: &[f32], codes: &mut [u8]) -> f32 {
    let mut largest = _mm512_setzero_si512();
    for values in values.chunks_exact(VALUES_AT_ONCE) {
        // SAFETY: a chunk has 16 values.
        let values = finite_or_zero(unsafe { _mm512_loadu_ps(values.as_ptr()) });
        largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(values)));
    }
    let scale = f32::from_bits(_mm512_reduce_max_epu32(largest));
    if scale < f32::MIN_POSITIVE {
        codes.fill(zero_code);
        return 0.0;
    }
    let inverse = _mm512_set1_ps(1.0 / scale);
    let mut tree = [_mm512_setzero_ps(); 16];
    for (register, floats) in tree.iter_mut().zip(tables.tree.chunks_exact(VALUES_AT_ONCE)) {
        // SAFETY: a chunk has 16 floats.
        *register = unsafe { _mm512_loadu_ps(floats.as_ptr()) };
    }
    for (values, codes) in
        values.chunks_exact(VALUES_AT_ONCE).zip(codes.chunks_exact_mut(VALUES_AT_ONCE))
    {
        // SAFETY: a chunk has 16 values.
        let values = finite_or_zero(unsafe { _mm512_loadu_ps(values.as_ptr()) });
        let found = descend(&tree, _mm512_mul_ps(values, inverse));
        // SAFETY: a chunk has 16 codes.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(found)) };
    }
    scale
}

/// The leaf of each value, whose low byte is its code. Permutations take as many low bits of a node
/// as they have entries for, which number it within its level.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn descend(tree: &[__m512; 16], values: __m512) -> __m512i {
    let (bit_5, bit_6) = (_mm512_set1_epi32(32), _mm512_set1_epi32(64));
    let mut node = _mm512_set1_epi32(1);
    // Levels 0 to 3 are the first register, level 4 is the second.
    node = below(node, _mm512_permutexvar_ps(node, tree[0]), values);
    node = below(node, _mm512_permutexvar_ps(node, tree[0]), values);
    node = below(node, _mm512_permutexvar_ps(node, tree[0]), values);
    node = below(node, _mm512_permutexvar_ps(node, tree[0]), values);
    node = below(node, _mm512_permutexvar_ps(node, tree[1]), values);
    node = below(node, _mm512_permutex2var_ps(tree[2], node, tree[3]), values);
    let lower = _mm512_permutex2var_ps(tree[4], node, tree[5]);
    let upper = _mm512_permutex2var_ps(tree[6], node, tree[7]);
    let is_upper = _mm512_test_epi32_mask(node, bit_5);
    node = below(node, _mm512_mask_blend_ps(is_upper, lower, upper), values);
    let is_upper = _mm512_test_epi32_mask(node, bit_5);
    let first = _mm512_permutex2var_ps(tree[8], node, tree[9]);
    let second = _mm512_permutex2var_ps(tree[10], node, tree[11]);
    let lower = _mm512_mask_blend_ps(is_upper, first, second);
    let third = _mm512_permutex2var_ps(tree[12], node, tree[13]);
    let fourth = _mm512_permutex2var_ps(tree[14], node, tree[15]);
    let upper = _mm512_mask_blend_ps(is_upper, third, fourth);
    let is_upper = _mm512_test_epi32_mask(node, bit_6);
    below(node, _mm512_mask_blend_ps(is_upper, lower, upper), values)
}

/// The child of each node on the side of its value.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn below(node: __m512i, threshold: __m512, values: __m512) -> __m512i {
    let reached = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(threshold, values);
    let twice = _mm512_add_epi32(node, node);
    _mm512_mask_add_epi32(twice, reached, twice, _mm512_set1_epi32(1))
}

/// Infinities and NaN become zero.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn finite_or_zero(values: __m512) -> __m512 {
    let infinity = _mm512_set1_ps(f32::INFINITY);
    let finite = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(values), infinity);
    _mm512_maskz_mov_ps(finite, values)
}
