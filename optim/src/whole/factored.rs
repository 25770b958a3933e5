//! Second moments kept as row and column means (Shazeer and Stern 2018, arXiv:1804.04235, section
//! 3), which Adafactor and CAME share.

use tch::Tensor;

use crate::error::Result;

/// The mean of squares along one dim of a matrix, without a temporary of the matrix's size.
///
/// # Shapes
/// `matrix`: `[rows, cols]`; returns `[cols]` for `dim` 0 and `[rows]` for 1.
pub(super) fn mean_square(matrix: &Tensor, dim: i64) -> Result<Tensor> {
    let size = matrix.size()[dim as usize] as f64;
    let mut norm = matrix.f_norm_scalaropt_dim(2.0, [dim], false)?;
    let _ = norm.f_square_()?;
    let _ = norm.f_mul_scalar_(1.0 / size)?;
    Ok(norm)
}

/// Root mean square of all elements, a scalar tensor on the tensor's device.
pub(super) fn rms(values: &Tensor) -> Result<Tensor> {
    Ok(values.f_norm()?.f_mul_scalar((values.numel() as f64).sqrt().recip())?)
}

/// Divides by `max(1, rms / threshold)`, in place and on the device.
pub(super) fn clip_rms_(values: &mut Tensor, threshold: f64) -> Result<()> {
    let divisor = rms(values)?.f_mul_scalar(threshold.recip())?.f_clamp_min(1.0)?;
    let _ = values.f_div_(&divisor)?;
    Ok(())
}

/// The matrix `row col^T / max(mean(row), floor)`: the best rank-1 estimate of a non-negative
/// matrix with these row and column means, in the generalized Kullback-Leibler divergence.
///
/// The rows are divided first: a product of two small means would underflow in f32.
///
/// # Shapes
/// `row`: `[rows]`; `col`: `[cols]`; returns `[rows, cols]`.
pub(super) fn outer_estimate(row: &Tensor, col: &Tensor, floor: f64) -> Result<Tensor> {
    let mean = row.f_mean(row.kind())?.f_clamp_min(floor)?;
    Ok(row.f_div(&mean)?.f_outer(col)?)
}

#[cfg(test)]
mod tests;
