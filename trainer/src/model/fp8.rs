//! Products of matrices whose elements are scaled to 8 bits (Micikevicius et al. 2022,
//! arXiv:2209.05433), with sums in f32: twice the rate of bf16 on GPUs that have them. Weights and
//! activations are `e4m3`; so are gradients with a scale a row, but those of a matrix that shares one
//! scale, whose magnitudes lie further apart, are `e5m2`, as section 3 of the paper recommends.
//!
//! Scales are those of the very values that are multiplied (no history of earlier steps), so that a
//! step depends on nothing but its state. On the CPU the same numbers are multiplied in f32, to try
//! what training makes of them: slowly.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// What cuBLASLt wants the two dims of the right matrix to be multiples of.
const MULTIPLE: i64 = 16;

/// Which products of blocks are of 8-bit numbers, and what shares a scale. The head's are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fp8 {
    /// None.
    #[default]
    Off,
    /// All three of a layer, with one scale a matrix.
    Tensor,
    /// Those of the forward and of the input's gradient, with a scale for each row of the left
    /// matrix and each column of the right one. The weight's gradient, whose sum is over tokens,
    /// stays in bf16.
    Row,
}

/// What the numbers of a matrix are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Weights or activations.
    Values,
    /// Gradients of activations.
    Gradients,
}

/// A format of 8 bits.
#[derive(Clone, Copy, Debug)]
struct Format {
    kind: Kind,
    /// The largest finite number.
    largest: f64,
}

const E4M3: Format = Format { kind: Kind::Float8e4m3fn, largest: 448.0 };
const E5M2: Format = Format { kind: Kind::Float8e5m2, largest: 57_344.0 };

impl Format {
    fn of(fp8: Fp8, content: Content) -> Self {
        match (fp8, content) {
            (Fp8::Tensor, Content::Gradients) => E5M2,
            _ => E4M3,
        }
    }
}

/// A matrix as 8-bit numbers and what they are to be multiplied by.
#[derive(Debug)]
struct Scaled {
    /// In a [`Format`], in the shape of the matrix.
    values: Tensor,
    /// f32: `[]`, `[n, 1]` or `[1, m]`.
    scale: Tensor,
}

/// The scale of a matrix, the largest magnitude over the largest number of the format, over all of it
/// or along `dim`: f32, `[]` or with `dim` of size 1. A part of zeros has 1.
fn scale_of(matrix: &Tensor, dim: Option<i64>, format: Format) -> Tensor {
    let magnitude = matrix.abs();
    let largest = match dim {
        None => magnitude.max(),
        Some(dim) => magnitude.amax([dim].as_slice(), true),
    };
    let scale = largest.to_kind(Kind::Float) / format.largest;
    scale.where_scalarother(&scale.not_equal(0.0), 1.0)
}

fn scaled(matrix: &Tensor, dim: Option<i64>, format: Format) -> Scaled {
    let scale = scale_of(matrix, dim, format);
    // The largest magnitude may be rounded to a little above the largest number, which still rounds
    // to it.
    Scaled { values: (matrix / &scale).to_kind(format.kind), scale }
}

/// Whether a product of these shapes can be formed: `a` is `[n, k]`, `b` `[k, m]`.
pub fn takes(a: &Tensor, b: &Tensor) -> bool {
    let sizes = [b.size()[0], b.size()[1]];
    a.kind() == Kind::BFloat16 && sizes.iter().all(|size| *size > 0 && size % MULTIPLE == 0)
}

/// `a b`, rounded to 8 bits before and to bf16 after.
///
/// # Shapes
/// - `a`: `[n, k]`, `b`: `[k, m]`, for which [`takes`] is true, both bf16 and not both gradients;
///   returns `[n, m]` bf16
pub fn product(fp8: Fp8, (a, of_a): (&Tensor, Content), (b, of_b): (&Tensor, Content)) -> Tensor {
    let (rows, columns) = match fp8 {
        Fp8::Row => (Some(1), Some(0)),
        Fp8::Tensor | Fp8::Off => (None, None),
    };
    let a = scaled(a, rows, Format::of(fp8, of_a));
    let b = scaled(b, columns, Format::of(fp8, of_b));
    if matches!(a.values.device(), Device::Cuda(_)) {
        // cuBLASLt wants the left matrix row by row and the right one column by column.
        let (left, right) = (a.values.contiguous(), b.values.tr().contiguous().tr());
        let (none, kind) = (None::<&Tensor>, Kind::BFloat16);
        return left.internal_scaled_mm(&right, &a.scale, &b.scale, none, none, kind, true);
    }
    let wide = |matrix: &Tensor| matrix.to_kind(Kind::Float);
    (wide(&a.values).mm(&wide(&b.values)) * &a.scale * &b.scale).to_kind(Kind::BFloat16)
}

#[cfg(test)]
mod tests;
