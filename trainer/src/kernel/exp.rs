//! The exponential function in f32, free of branches and calls, so that loops over it vectorize.

#[cfg(test)]
mod tests;

/// From here down the result is 0: `exp(-88)` is below the smallest normal f32.
const LOWEST: f32 = -88.0;
/// From here up the result is infinite.
const HIGHEST: f32 = 89.0;
/// `1.5 * 2^23`: added to a small number, it leaves the nearest integer in the lowest bits.
const ROUND: f32 = 12_582_912.0;
/// The upper part of ln 2, short enough that its product with an exponent is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
/// `ln 2 - LN_2_HIGH`.
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Coefficients of `(exp(r) - 1 - r) / r^2` on `|r| <= ln 2 / 2`, highest power first: those of
/// Moshier's Cephes library, `expf`.
const POLYNOMIAL: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];

/// `e^x`, off by at most 2 units in the last place for `x` in `[-87.3, 88.3]`.
///
/// Below that range it falls to exactly 0 (`x < -87.7`), above it rises to infinity (`x > 88.4`).
/// A NaN gives a NaN. Products are fused with sums at every level, in software where a processor
/// cannot.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Comparisons are false for a NaN, which therefore passes through.
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let exponent = shifted - ROUND;
    let r = exponent.mul_add(-LN_2_LOW, exponent.mul_add(-LN_2_HIGH, x));
    // In pairs, as one coefficient after another would make each wait for the one before.
    let square = r * r;
    let highest = POLYNOMIAL[0].mul_add(r, POLYNOMIAL[1]);
    let middle = POLYNOMIAL[2].mul_add(r, POLYNOMIAL[3]);
    let lowest = POLYNOMIAL[4].mul_add(r, POLYNOMIAL[5]);
    let polynomial = highest.mul_add(square, middle).mul_add(square, lowest);
    let mantissa = polynomial.mul_add(square, r) + 1.0;
    // The low bits of `shifted` are the exponent; -127 gives the f32 zero, 128 gives infinity.
    let power_of_two = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    mantissa * power_of_two
}
