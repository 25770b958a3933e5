//! Linear maps whose weights stay outside: `y = x W^T (+ b)`, with a backward that adds the weight
//! gradient where the caller keeps it.

use tch::Tensor;

use super::compute::{Compute, per_element};
use super::units::{Orientation, Projection};
use super::views::{Grads, Weights};
use crate::kernel::{accumulate, view};

impl Projection {
    /// `x W^T + b`.
    ///
    /// # Shapes
    /// - `x`: `[N, in]`; returns `[N, out]`; both in the compute dtype, products accumulate in f32
    pub fn forward(&self, compute: &Compute, weights: &Weights<'_>, x: &Tensor) -> Tensor {
        let matrix = self.input_by_output(weights);
        match self.bias {
            Some(bias) => compute.product_and_bias(&weights.get(bias), x, &matrix),
            None => compute.product(x, &matrix),
        }
    }

    /// `residual + x W^T + b`, rounded as [`Compute::product_added`] says.
    ///
    /// # Shapes
    /// - `x`: `[N, in]`, `residual`: `[N, out]`; returns `[N, out]`
    pub fn forward_add(
        &self,
        compute: &Compute,
        weights: &Weights<'_>,
        x: &Tensor,
        residual: &Tensor,
    ) -> Tensor {
        let matrix = self.input_by_output(weights);
        let bias = self.bias.map(|bias| weights.get(bias));
        compute.product_added(residual, (x, &matrix), bias.as_ref())
    }

    /// Adds the gradients of weight and bias to `grads` and returns the gradient of the input.
    ///
    /// # Shapes
    /// - `x`: `[N, in]` the forward's input; `dy`: `[N, out]`; returns `[N, in]`
    pub fn backward(
        &self,
        compute: &Compute,
        (weights, grads): (&Weights<'_>, &Grads<'_>),
        x: &Tensor,
        dy: &Tensor,
    ) -> Tensor {
        match self.orientation {
            Orientation::OutIn => grads.add_product(compute, self.weights.clone(), dy, x),
            Orientation::InOut => grads.add_product(compute, self.weights.clone(), x, dy),
        }
        if let Some(bias) = self.bias {
            let mut sum = grads.open(compute, bias);
            add_column_sums(compute, dy, &mut sum);
            grads.close(bias, &sum);
        }
        compute.product(dy, &self.input_by_output(weights).tr())
    }

    /// The stacked weight as `[in, out]`: a view.
    fn input_by_output(&self, weights: &Weights<'_>) -> Tensor {
        let stored = weights.stacked(self.weights.clone());
        match self.orientation {
            Orientation::OutIn => stored.tr(),
            Orientation::InOut => stored,
        }
    }
}

/// Adds the sum over rows of `dy` `[N, D]` to `target` `[D]` in the accumulation dtype.
fn add_column_sums(compute: &Compute, dy: &Tensor, target: &mut Tensor) {
    if compute.has_kernels() {
        let target = view::slice_mut::<f32>(target);
        per_element!(compute, E => accumulate::add_column_sums::<E>(&compute.pool, view::slice(dy), target));
    } else {
        let _ =
            target.g_add_(&dy.sum_dim_intlist([0i64].as_slice(), false, compute.accumulation()));
    }
}
