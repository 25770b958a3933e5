//! The feed-forward activations: `SwiGLU` (Shazeer 2020, arXiv:2002.05202, eq. 6) and GELU in its
//! tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2), forward and backward.

use tch::Tensor;

use super::compute::{Compute, per_element};
use super::config::Mlp;
use crate::kernel::activation::{self as kernel, gelu};
use crate::kernel::view;

/// `sqrt(2 / pi)`, the slope of the tanh form at 0.
const GELU_SLOPE: f64 = 0.797_884_560_802_865_4;
/// The cubic term of the tanh form.
const GELU_CUBIC: f64 = 0.044_715;

/// The activation of `up`'s output.
///
/// # Shapes
/// - `up`: `[N, 2 F]` (gate, then up) for `SwiGLU`, `[N, F]` for GELU; returns `[N, F]`;
///   compute dtype, evaluated in the accumulation dtype and rounded once
pub fn forward(compute: &Compute, mlp: Mlp, up: &Tensor) -> Tensor {
    if let Some(fused) = compute.fused(activated_columns(mlp, up)) {
        return match mlp {
            Mlp::SwiGlu => fused.swiglu_forward(up),
            Mlp::Gelu => fused.gelu_forward(up),
        };
    }
    if compute.has_kernels() {
        return forward_kernel(compute, mlp, up);
    }
    let wide = up.to_kind(compute.accumulation());
    match mlp {
        Mlp::SwiGlu => {
            let halves = wide.chunk(2, 1);
            halves[0].silu() * &halves[1]
        }
        Mlp::Gelu => wide.gelu("tanh"),
    }
    .to_kind(up.kind())
}

/// The gradient of `up` for the gradient `d_act` of the activation; shapes as in [`forward`]. The
/// content of `up` is lost: the CPU's kernels put the gradient in its place.
pub fn backward(compute: &Compute, mlp: Mlp, up: Tensor, d_act: &Tensor) -> Tensor {
    if let Some(fused) = compute.fused(activated_columns(mlp, &up)) {
        return match mlp {
            Mlp::SwiGlu => fused.swiglu_backward(&up, d_act),
            Mlp::Gelu => fused.gelu_backward(&up, d_act),
        };
    }
    if compute.has_kernels() {
        return backward_kernel(compute, mlp, up, d_act);
    }
    let kind = compute.accumulation();
    let (wide, d_act) = (up.to_kind(kind), d_act.to_kind(kind));
    match mlp {
        Mlp::SwiGlu => {
            let halves = wide.chunk(2, 1);
            let (gate, up) = (&halves[0], &halves[1]);
            let sigmoid = gate.sigmoid();
            let slope = &sigmoid * (1.0 + gate * (1.0 - &sigmoid));
            Tensor::cat(&[&d_act * up * slope, d_act * gate * sigmoid], 1)
        }
        Mlp::Gelu => {
            let tanh = (GELU_SLOPE * (&wide + GELU_CUBIC * wide.pow_tensor_scalar(3))).tanh();
            let inner = GELU_SLOPE * (1.0 + 3.0 * GELU_CUBIC * wide.square());
            let slope = 0.5 * (1.0 + &tanh) + 0.5 * &wide * (1.0 - tanh.square()) * inner;
            d_act * slope
        }
    }
    .to_kind(up.kind())
}

fn forward_kernel(compute: &Compute, mlp: Mlp, up: &Tensor) -> Tensor {
    let mut act = compute.empty(&[up.size()[0], activated_columns(mlp, up)]);
    let columns = act.size()[1] as usize;
    per_element!(compute, E => {
        let (up, act) = (view::slice::<E>(up), view::slice_mut::<E>(&mut act));
        match mlp {
            Mlp::SwiGlu => kernel::swiglu_forward(&compute.pool, up, columns, act),
            Mlp::Gelu => gelu::forward(&compute.pool, up, act),
        }
    });
    act
}

fn backward_kernel(compute: &Compute, mlp: Mlp, mut up: Tensor, d_act: &Tensor) -> Tensor {
    let columns = d_act.size()[1] as usize;
    per_element!(compute, E => {
        let (up, d_act) = (view::slice_mut::<E>(&mut up), view::slice::<E>(d_act));
        match mlp {
            Mlp::SwiGlu => kernel::swiglu_backward(&compute.pool, up, d_act, columns),
            Mlp::Gelu => gelu::backward(&compute.pool, up, d_act),
        }
    });
    up
}

/// Columns of the activation's result.
fn activated_columns(mlp: Mlp, up: &Tensor) -> i64 {
    match mlp {
        Mlp::SwiGlu => up.size()[1] / 2,
        Mlp::Gelu => up.size()[1],
    }
}
