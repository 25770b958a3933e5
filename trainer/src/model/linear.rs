//! Linear maps whose weights stay outside: `y = x W^T (+ b)`, with a backward that adds the weight
//! gradient where the caller keeps it.

use tch::Tensor;

use super::compute::{Compute, per_element};
use super::fp8::{self, Content, Fp8};
use super::units::{Orientation, Projection};
use super::views::{Grads, Weights};
use crate::kernel::matrix::Finish;
use crate::kernel::{accumulate, view};

impl Projection {
    /// `x W^T + b`.
    ///
    /// # Shapes
    /// - `x`: `[N, in]`; returns `[N, out]`; both in the compute dtype, products accumulate in f32
    pub fn forward(&self, compute: &Compute, weights: &Weights<'_>, x: &Tensor) -> Tensor {
        let matrix = self.input_by_output(weights);
        if let Some(product) =
            self.fp8_product(compute, ((x, Content::Values), (&matrix, Content::Values)))
        {
            return match self.bias {
                Some(bias) => product + weights.get(bias),
                None => product,
            };
        }
        match self.bias {
            Some(bias) => compute.product_and_bias(&weights.get(bias), x, &matrix),
            None => compute.product(x, &matrix),
        }
    }

    /// [`Projection::forward`] with rows that are finished while they are in a cache; `None` where
    /// that cannot be, and nothing was computed.
    ///
    /// # Shapes
    /// - `x`: `[N, in]`; returns `[N, out]`
    pub fn forward_finished(
        &self,
        compute: &Compute,
        weights: &Weights<'_>,
        x: &Tensor,
        finish: &dyn Finish,
    ) -> Option<Tensor> {
        if self.may_be_fp8 && compute.fp8 != Fp8::Off {
            return None;
        }
        let bias = self.bias.map(|bias| weights.get(bias));
        compute.product_finished((x, &self.input_by_output(weights)), bias.as_ref(), finish)
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
        if let Some(product) =
            self.fp8_product(compute, ((x, Content::Values), (&matrix, Content::Values)))
        {
            let base = match bias {
                Some(bias) => residual + bias,
                None => residual.shallow_clone(),
            };
            return base + product;
        }
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
        let (gradients, values) = (Content::Gradients, Content::Values);
        let ((left, of_left), (right, of_right)) = match self.orientation {
            Orientation::OutIn => ((dy, gradients), (x, values)),
            Orientation::InOut => ((x, values), (dy, gradients)),
        };
        let transpose = left.tr();
        let factors = ((&transpose, of_left), (right, of_right));
        let whole = compute.fp8 == Fp8::Tensor;
        match whole.then(|| self.fp8_product(compute, factors)).flatten() {
            Some(product) => grads.add_stacked(compute, self.weights.clone(), &product),
            None => grads.add_product(compute, self.weights.clone(), left, right),
        }
        if let Some(bias) = self.bias {
            let mut sum = grads.open(compute, bias);
            add_column_sums(compute, dy, &mut sum);
            grads.close(compute, bias, &sum);
        }
        let matrix = self.input_by_output(weights).tr();
        let factors = ((dy, gradients), (&matrix, values));
        self.fp8_product(compute, factors).unwrap_or_else(|| compute.product(dy, &matrix))
    }

    /// `a b` of 8-bit numbers, where that is wanted and the shapes allow it.
    fn fp8_product(
        &self,
        compute: &Compute,
        (a, b): ((&Tensor, Content), (&Tensor, Content)),
    ) -> Option<Tensor> {
        let wanted = self.may_be_fp8 && compute.fp8 != Fp8::Off && fp8::takes(a.0, b.0);
        wanted.then(|| {
            let _stopwatch = compute.work.product();
            fp8::product(compute.fp8, a, b)
        })
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
