//! Sums of f64 that do not depend on the order, nor on who adds what.

/// Bits of a digit.
const DIGIT_BITS: usize = 32;
const DIGIT_MASK: i64 = (1 << DIGIT_BITS) - 1;

/// Digits of the sum. Digit `i` counts `2^(32 i - 1074)`, where `2^-1074` is the least f64. 66
/// digits hold the largest one, below `2^1024 = 2^(2098 - 1074)`, and one more what goes beyond.
const SUM_DIGITS: usize = 67;

/// The digit that counts values that are not finite.
const NOT_FINITE: usize = SUM_DIGITS;

/// After so many additions the carries are passed on. Each adds less than `2^32` to a digit.
const MAX_PENDING: u64 = 1 << 29;

const MANTISSA_BITS: usize = 52;
const EXPONENT_MASK: u64 = 0x7ff;

/// The exact sum of any f64: a fixed-point number as long as their whole range, so nothing is
/// rounded before [`ExactSum::value`]. The same bits for every order and every division of the
/// values over sums that are merged, or over ranks whose digits are added as i64.
///
/// Up to `2^47` values a rank and `2^30` ranks fit.
///
/// ```
/// let mut sum = grove_parallel::ExactSum::new();
/// [1e308, 1e308, 1.0, -1e308, -1e308].map(|value| sum.add(value));
/// assert_eq!(sum.value(), 1.0);
/// ```
///
/// # References
/// Kulisch and Miranker 1986, The arithmetic of the digital computer: a new approach, SIAM Review
/// 28(1): the accumulator. Demmel and Hida 2004, Accurate and efficient floating point summation,
/// SIAM Journal on Scientific Computing 25(4): digits with room for carries.
#[derive(Debug, Clone)]
pub struct ExactSum {
    digits: [i64; Self::NUM_DIGITS],
    /// How many additions, at most, a digit has grown by since carries were passed on.
    pending: u64,
}

impl Default for ExactSum {
    fn default() -> Self {
        Self::new()
    }
}

impl ExactSum {
    /// Length of [`ExactSum::to_digits`].
    pub const NUM_DIGITS: usize = SUM_DIGITS + 1;

    /// The sum of nothing, 0.
    pub fn new() -> Self {
        Self { digits: [0; Self::NUM_DIGITS], pending: 0 }
    }

    /// Adds a value. One that is not finite makes the sum NaN for good.
    pub fn add(&mut self, value: f64) {
        let bits = value.to_bits();
        let exponent = (bits >> MANTISSA_BITS) & EXPONENT_MASK;
        if exponent == EXPONENT_MASK {
            self.digits[NOT_FINITE] += 1;
            return;
        }
        let fraction = bits & ((1 << MANTISSA_BITS) - 1);
        // The value is `mantissa * 2^(shift - 1074)`; a subnormal has no leading one.
        let mantissa = fraction | u64::from(exponent != 0) << MANTISSA_BITS;
        let shift = exponent.saturating_sub(1) as usize;
        let wide = u128::from(mantissa) << (shift % DIGIT_BITS);
        let sign = if value.is_sign_negative() { -1 } else { 1 };
        let start = shift / DIGIT_BITS;
        for (place, digit) in self.digits[start..start + 3].iter_mut().enumerate() {
            *digit += sign * ((wide >> (place * DIGIT_BITS)) as i64 & DIGIT_MASK);
        }
        self.grow(1);
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &Self) {
        for (digit, other) in self.digits.iter_mut().zip(&other.digits) {
            *digit += other;
        }
        // What carries had been passed on is below one more addition.
        self.grow(other.pending + 1);
    }

    /// The sum, correctly rounded (to nearest, ties to even): infinite only if it is so large
    /// itself, and +0.0 for any sum of zero. NaN if a value was not finite.
    pub fn value(&self) -> f64 {
        if self.digits[NOT_FINITE] != 0 {
            return f64::NAN;
        }
        let mut sum = self.clone();
        sum.pass_on_carries();
        let is_negative = sum.digits[SUM_DIGITS - 1] < 0;
        if is_negative {
            sum.digits.iter_mut().for_each(|digit| *digit = -*digit);
            sum.pass_on_carries();
        }
        let magnitude = round(&sum.digits[..SUM_DIGITS]);
        if is_negative { -magnitude } else { magnitude }
    }

    /// The sum as [`ExactSum::NUM_DIGITS`] numbers, one way for each sum: digits in `[0, 2^32)`,
    /// least first, of which the last but one carries the sign, and the count of values that were
    /// not finite. The numbers of up to `2^30` ranks may be added one by one.
    pub fn to_digits(&self) -> Vec<i64> {
        let mut sum = self.clone();
        sum.pass_on_carries();
        sum.digits.to_vec()
    }

    /// The sum with these digits, or with those of several ranks added one by one.
    ///
    /// # Panics
    /// If there are not [`ExactSum::NUM_DIGITS`].
    pub fn from_digits(digits: &[i64]) -> Self {
        let digits = digits.try_into().expect("as many digits as to_digits gives");
        let mut sum = Self { digits, pending: 0 };
        sum.pass_on_carries();
        sum
    }

    /// Counts additions since carries were passed on, and passes them on before a digit is full.
    fn grow(&mut self, additions: u64) {
        self.pending += additions;
        if self.pending >= MAX_PENDING {
            self.pass_on_carries();
        }
    }

    /// Brings all digits but the highest into `[0, 2^32)`.
    fn pass_on_carries(&mut self) {
        for place in 0..SUM_DIGITS - 1 {
            self.digits[place + 1] += self.digits[place] >> DIGIT_BITS;
            self.digits[place] &= DIGIT_MASK;
        }
        self.pending = 0;
    }
}

/// The f64 nearest to a sum that is not negative, whose carries have been passed on.
fn round(digits: &[i64]) -> f64 {
    // The highest digit may be longer than the others; as two it is not.
    let mut words: Vec<u64> = digits.iter().map(|&digit| (digit & DIGIT_MASK) as u64).collect();
    words.push((digits[digits.len() - 1] >> DIGIT_BITS) as u64);
    let Some(highest) = words.iter().rposition(|&word| word != 0) else { return 0.0 };
    let length = highest * DIGIT_BITS + words[highest].ilog2() as usize + 1;
    // The number is `mantissa * 2^shift` times the least f64, and a rest below the mantissa.
    let shift = length.saturating_sub(MANTISSA_BITS + 1);
    if shift >= EXPONENT_MASK as usize - 1 {
        return f64::INFINITY;
    }
    let word = |place: usize| u128::from(words.get(place).copied().unwrap_or(0));
    let (place, offset) = (shift / DIGIT_BITS, shift % DIGIT_BITS);
    let window = word(place) | word(place + 1) << 32 | word(place + 2) << 64;
    let mantissa = (window >> offset) as u64 & ((1 << (MANTISSA_BITS + 1)) - 1);
    let is_set = |bit: usize| words[bit / DIGIT_BITS] >> (bit % DIGIT_BITS) & 1 == 1;
    let rounds_up =
        shift > 0 && is_set(shift - 1) && (mantissa & 1 == 1 || (0..shift - 1).any(is_set));
    // The leading one of the mantissa adds 1 to the exponent, as does a carry out of it, by which
    // the largest f64 becomes infinity.
    f64::from_bits(((shift as u64) << MANTISSA_BITS) + mantissa + u64::from(rounds_up))
}

#[cfg(test)]
mod tests;
