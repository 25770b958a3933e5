//! Block-wise quantization to 8 bits with dynamic codes (Dettmers et al. 2021, arXiv:2110.02861,
//! sections 1.2 and 2.1), with the code books of bitsandbytes' `create_dynamic_map`.
//!
//! A code book has 256 values in [-1, 1] or [0, 1], dense near zero and evenly spaced within each
//! decade: seven decades down to 1e-7. A block of 256 elements is divided by its largest magnitude,
//! kept as its scale, and each element takes the nearest code.

mod permute;

use permute::Tables;

use crate::error::{Error, Result};
use crate::state::{QUANTIZED_BLOCK_ELEMENTS, Storage};

/// Powers of ten of the decades, as Python's `10 ** -6` to `10 ** 0` round to f32.
const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
/// The bin of 2^-23: a float's exponent and 7 bits of mantissa. Below it there is no threshold.
const FIRST_BIN: u32 = (127 - 23) << 7;
/// The bin of 1.0, the last.
const LAST_BIN: u32 = 127 << 7;
/// Room for the bins of one sign: a power of two, so that an index can be masked to the table.
const NUM_BINS: usize = 4096;

/// 256 values in ascending order, and what finding the nearest needs.
///
/// A bin holds the floats of one sign whose first 16 bits agree, and at most one threshold between
/// two codes: one look-up and one comparison find the nearest code.
#[derive(Debug)]
pub struct CodeBook {
    values: [f32; 256],
    /// `thresholds[i]` is the smallest float whose nearest value is not among the first `i + 1`.
    thresholds: [f32; 256],
    /// For each bin, positive ones first: in the high half the code of its smallest float, in the
    /// low half 2^16 less the [`Place::rank`] of its threshold, or zero.
    bins: [u32; 2 * NUM_BINS],
    /// The same for processors that can hold it in registers.
    tables: Tables,
    zero_code: u8,
}

static SIGNED: CodeBook = CodeBook::new(true);
static UNSIGNED: CodeBook = CodeBook::new(false);

impl CodeBook {
    /// For values of both signs, such as a first moment: -0.993 to 1, zero has code 127.
    pub fn signed() -> &'static Self {
        &SIGNED
    }

    /// For values that are not negative, such as a second moment: 0 to 1, zero has code 0.
    pub fn unsigned() -> &'static Self {
        &UNSIGNED
    }

    /// The value of each code, ascending.
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// The code of zero.
    pub fn zero_code(&self) -> u8 {
        self.zero_code
    }

    /// For each code but the last, the smallest float that has a higher one.
    pub(crate) fn thresholds(&self) -> &[f32] {
        &self.thresholds[..255]
    }

    /// Quantizes `values` in blocks, the last one perhaps shorter.
    ///
    /// Ties go to the smaller code. A sign never turns, but small values become zero. A block whose
    /// scale would not be a normal number is zero; infinite and NaN elements become zero, so that
    /// they spoil no others.
    ///
    /// # Shapes
    /// `values`, `codes`: `[n]`; `scales`: `[ceil(n / QUANTIZED_BLOCK_ELEMENTS)]`.
    ///
    /// # Errors
    /// [`Error::Length`], before anything is written.
    pub fn quantize(&self, values: &[f32], codes: &mut [u8], scales: &mut [f32]) -> Result<()> {
        check_lengths(values.len(), codes.len(), scales.len())?;
        let blocks = values.chunks(QUANTIZED_BLOCK_ELEMENTS);
        let codes = codes.chunks_mut(QUANTIZED_BLOCK_ELEMENTS);
        for ((values, codes), scale) in blocks.zip(codes).zip(scales) {
            *scale = self.quantize_block(values, codes);
        }
        Ok(())
    }

    /// The values of quantized blocks: code times scale, rounded once.
    ///
    /// # Shapes
    /// As [`CodeBook::quantize`].
    ///
    /// # Errors
    /// [`Error::Length`], before anything is written.
    pub fn dequantize(&self, codes: &[u8], scales: &[f32], values: &mut [f32]) -> Result<()> {
        check_lengths(values.len(), codes.len(), scales.len())?;
        let blocks = values.chunks_mut(QUANTIZED_BLOCK_ELEMENTS);
        let codes = codes.chunks(QUANTIZED_BLOCK_ELEMENTS);
        for ((values, codes), scale) in blocks.zip(codes).zip(scales) {
            self.dequantize_block(codes, *scale, values);
        }
        Ok(())
    }

    /// Writes the values of one block.
    #[inline(always)]
    pub(crate) fn dequantize_block(&self, codes: &[u8], scale: f32, values: &mut [f32]) {
        if !self.permuted_values(codes, scale, values) {
            self.loaded_values(codes, scale, values);
        }
    }

    /// [`CodeBook::dequantize_block`] by loads from the table.
    #[inline(always)]
    fn loaded_values(&self, codes: &[u8], scale: f32, values: &mut [f32]) {
        self.look_up_values(codes, values);
        for value in values {
            *value *= scale;
        }
    }

    /// Writes the codes of one block and returns its scale.
    #[inline(always)]
    pub(crate) fn quantize_block(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        match self.permuted_codes(values, codes) {
            Some(scale) => scale,
            None => self.loaded_codes(values, codes),
        }
    }

    /// [`CodeBook::quantize_block`] by loads from the bins.
    #[inline(always)]
    fn loaded_codes(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        // Integers order magnitudes as floats do, and a maximum of integers is a vector loop.
        let mut largest = 0;
        for value in values {
            largest = largest.max(finite_or_zero(*value).to_bits() & 0x7fff_ffff);
        }
        let scale = f32::from_bits(largest);
        if scale < f32::MIN_POSITIVE {
            codes.fill(self.zero_code);
            return 0.0;
        }
        // A product with the inverse, as in bitsandbytes' quantize_blockwise. Places are found in
        // a vector loop of their own, for look-ups are not one.
        let inverse = 1.0 / scale;
        let mut places = [Place { bin: 0, rank: 0 }; QUANTIZED_BLOCK_ELEMENTS];
        for (place, value) in places.iter_mut().zip(values) {
            *place = Place::of(finite_or_zero(*value) * inverse);
        }
        self.look_up_codes(&places[..codes.len()], codes);
        scale
    }

    /// Never inlined, so that the loop is compiled for the plain target: with AVX-512 the compiler
    /// takes gather instructions, which are no faster than loads on Zen 5, and far slower on
    /// processors whose microcode guards them against data sampling.
    #[inline(never)]
    fn look_up_codes(&self, places: &[Place], codes: &mut [u8]) {
        for (code, place) in codes.iter_mut().zip(places) {
            *code = self.nearest(*place);
        }
    }

    /// Never inlined either, for the same reason.
    #[inline(never)]
    fn look_up_values(&self, codes: &[u8], values: &mut [f32]) {
        for (value, &code) in values.iter_mut().zip(codes) {
            *value = self.values[usize::from(code)];
        }
    }

    /// The nearest code of the value at a place.
    #[inline(always)]
    fn nearest(&self, place: Place) -> u8 {
        let entry = self.bins[usize::from(place.bin) % (2 * NUM_BINS)];
        // A rank at or beyond the threshold carries into the code.
        ((entry + u32::from(place.rank)) >> 16) as u8
    }

    const fn new(signed: bool) -> Self {
        let mut values = [0.0; 256];
        let zero_code = if signed { 127 } else { 0 };
        let mut code = zero_code + 1;
        let mut decade = 0;
        while decade < DECADES.len() {
            let num_values = 1 << (if signed { decade } else { decade + 1 });
            let mut i = 0;
            while i < num_values {
                let low = boundary(i, num_values);
                let mean = (low + boundary(i + 1, num_values)) / 2.0;
                values[code] = DECADES[decade] * mean;
                if signed {
                    values[2 * zero_code - code] = -values[code];
                }
                code += 1;
                i += 1;
            }
            decade += 1;
        }
        assert!(code == 255, "the decades leave one code, for 1");
        values[255] = 1.0;
        let thresholds = thresholds(&values);
        let bins = bins(&thresholds);
        let tables = Tables::new(&values, &thresholds);
        Self { values, thresholds, bins, tables, zero_code: zero_code as u8 }
    }
}

/// Where a value lies among the bins.
#[derive(Clone, Copy)]
struct Place {
    /// Index into the bins.
    bin: u16,
    /// Place within the bin, ascending with the value: the last 16 bits, or their complement where
    /// the value is negative.
    rank: u16,
}

impl Place {
    /// Of a value that is at most one in magnitude, give or take a rounding.
    #[inline(always)]
    fn of(value: f32) -> Self {
        let bits = value.to_bits();
        let is_negative = bits >> 31;
        let bin = ((bits >> 16) & 0x7fff).clamp(FIRST_BIN, LAST_BIN) - FIRST_BIN;
        Self {
            bin: (bin + is_negative * NUM_BINS as u32) as u16,
            rank: (bits ^ is_negative.wrapping_neg()) as u16,
        }
    }
}

/// Infinities and NaN become zero.
#[inline(always)]
fn finite_or_zero(value: f32) -> f32 {
    if value.abs() < f32::INFINITY { value } else { 0.0 }
}

fn check_lengths(values: usize, codes: usize, scales: usize) -> Result<()> {
    if codes != values {
        return Err(Error::Length { buffer: "codes", expected: values, found: codes });
    }
    let expected = Storage::BlockScale.num_elements(values);
    if scales != expected {
        return Err(Error::Length { buffer: "scales", expected, found: scales });
    }
    Ok(())
}

/// Element `i` of `torch.linspace(0.1, 1, num_steps + 1)` in f32: from the nearer end, with the
/// multiply-add rounded once. The sum of a product is exact enough in f64 to round alike.
const fn boundary(i: usize, num_steps: usize) -> f32 {
    const START: f32 = 0.1;
    const END: f32 = 1.0;
    let step = ((END - START) / num_steps as f32) as f64;
    if i < num_steps.div_ceil(2) {
        (START as f64 + step * i as f64) as f32
    } else {
        (END as f64 - step * (num_steps - i) as f64) as f32
    }
}

/// Whether `right` is strictly nearer to `value` than `left`, by distances in f32.
const fn right_is_nearer(value: f32, left: f32, right: f32) -> bool {
    right - value < value - left
}

const fn thresholds(values: &[f32; 256]) -> [f32; 256] {
    let mut thresholds = [f32::INFINITY; 256];
    let mut code = 0;
    while code < 255 {
        let (left, right) = (values[code], values[code + 1]);
        // The middle, give or take the roundings of the two distances.
        let mut threshold = (left + right) / 2.0;
        while right_is_nearer(threshold, left, right) {
            threshold = threshold.next_down();
        }
        while !right_is_nearer(threshold, left, right) {
            threshold = threshold.next_up();
        }
        thresholds[code] = threshold;
        code += 1;
    }
    thresholds
}

/// The number of thresholds not above `value`, that is its code, from one that is not far.
const fn code_near(thresholds: &[f32; 256], value: f32, guess: usize) -> usize {
    let mut code = guess;
    while code > 0 && thresholds[code - 1] > value {
        code -= 1;
    }
    while code < 255 && thresholds[code] <= value {
        code += 1;
    }
    code
}

const fn bins(thresholds: &[f32; 256]) -> [u32; 2 * NUM_BINS] {
    let mut bins = [0; 2 * NUM_BINS];
    let mut half = 0;
    while half < 2 {
        let mut code = 0;
        let mut bin = FIRST_BIN;
        while bin <= LAST_BIN {
            // The first bin reaches down to zero.
            let near = if bin == FIRST_BIN { 0.0 } else { f32::from_bits(bin << 16) };
            let far = f32::from_bits((bin << 16) | 0xffff);
            let (smallest, largest) = if half == 0 { (near, far) } else { (-far, -near) };
            code = code_near(thresholds, smallest, code);
            let last = code_near(thresholds, largest, code);
            assert!(last <= code + 1, "one threshold a bin");
            assert!(bin > FIRST_BIN || code == last, "no threshold near zero");
            let first_beyond = thresholds[code].to_bits();
            let room = match (last > code, half) {
                (false, _) => 0,
                (true, 0) => 0x1_0000 - (first_beyond & 0xffff),
                (true, _) => 0x1_0000 - (!first_beyond & 0xffff),
            };
            assert!(room < 0x1_0000, "the smallest float of a bin is below its threshold");
            bins[half * NUM_BINS + (bin - FIRST_BIN) as usize] = ((code as u32) << 16) | room;
            bin += 1;
        }
        half += 1;
    }
    bins
}

#[cfg(test)]
mod tests;
