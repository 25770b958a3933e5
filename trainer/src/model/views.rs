//! A unit's parameters as layers see them: views into flat buffers, handed in for the duration of
//! a call. Layers hold no tensors, so a unit's buffers may come and go between calls.

use grove_parallel::UnitLayout;
use tch::{Kind, Tensor};

use super::compute::{Compute, Products, wide};
use crate::kernel::{accumulate, view};

/// The working copies of one unit's parameters, in the compute dtype.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// Names, shapes and offsets.
    pub layout: &'a UnitLayout,
    /// The flat buffer, at least `layout.padded_numel()` elements.
    pub flat: &'a Tensor,
}

impl Weights<'_> {
    /// Parameter `index` of the unit as a view in its own shape.
    pub fn get(&self, index: usize) -> Tensor {
        view_of(self.layout, self.flat, index)
    }

    /// Parameters `range`, matrices of one width, stacked along dim 0: a view when they lie
    /// side by side without padding, else a copy.
    pub fn stacked(&self, range: std::ops::Range<usize>) -> Tensor {
        match stacked_view(self.layout, self.flat, range.clone()) {
            Some(view) => view,
            None => Tensor::cat(&range.map(|i| self.get(i)).collect::<Vec<_>>(), 0),
        }
    }
}

/// Whether a gradient replaces what its buffer holds (first micro-batch of a step) or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// Replace: the buffer's old content is never read, so it needs no zeroing pass.
    Overwrite,
    /// Add to what earlier micro-batches left.
    Add,
}

/// The gradient accumulators of one unit, f32 (f64 when computing in f64).
#[derive(Clone, Copy, Debug)]
pub struct Grads<'a> {
    /// Names, shapes and offsets.
    pub layout: &'a UnitLayout,
    /// The flat buffer, at least `layout.padded_numel()` elements.
    pub flat: &'a Tensor,
    /// Replace or add.
    pub accumulate: Accumulate,
}

impl Grads<'_> {
    /// The accumulator of parameter `index` as a view in its own shape, ready to be added to:
    /// zeroed first if this micro-batch is to replace its content.
    pub fn ready_to_add(&self, index: usize) -> Tensor {
        let mut view = view_of(self.layout, self.flat, index);
        if self.accumulate == Accumulate::Overwrite {
            let _ = view.zero_();
        }
        view
    }

    /// Adds `a^T b` to the accumulators of parameters `range`, stacked along dim 0.
    ///
    /// # Shapes
    /// - `a`: `[N, rows]`, `b`: `[N, columns]`, compute dtype; the stacked accumulators are
    ///   `[rows, columns]`
    ///
    /// In f32 and f64, and where bf16 is widened, the product accumulates in place; in bf16 it is
    /// rounded to bf16 once and added in f32.
    pub fn add_product(
        &self,
        compute: &Compute,
        range: std::ops::Range<usize>,
        a: &Tensor,
        b: &Tensor,
    ) {
        let joint = stacked_view(self.layout, self.flat, range.clone());
        let (a, b) = match compute.products {
            Products::Native => (a.shallow_clone(), b.shallow_clone()),
            Products::Widened => (wide(a), wide(b)),
        };
        if let (Some(target), true) = (&joint, a.kind() == compute.accumulation()) {
            match self.accumulate {
                Accumulate::Overwrite => drop(a.tr().mm_out(target, &b)),
                Accumulate::Add => drop(target.shallow_clone().addmm_(&a.tr(), &b)),
            }
            return;
        }
        let product = a.tr().mm(&b);
        match joint {
            Some(target) => self.add(compute, target, &product),
            None => {
                let mut row = 0;
                for index in range {
                    let target = view_of(self.layout, self.flat, index);
                    let rows = target.size()[0];
                    self.add(compute, target, &product.narrow(0, row, rows));
                    row += rows;
                }
            }
        }
    }

    fn add(&self, compute: &Compute, mut target: Tensor, product: &Tensor) {
        if compute.has_kernels() && product.kind() == Kind::BFloat16 {
            let target = view::slice_mut::<f32>(&mut target);
            let product = view::slice::<half::bf16>(product);
            match self.accumulate {
                Accumulate::Overwrite => {
                    accumulate::cast::<f32, half::bf16>(&compute.pool, product, target)
                }
                Accumulate::Add => accumulate::add_assign(&compute.pool, target, product),
            }
            return;
        }
        match self.accumulate {
            Accumulate::Overwrite => target.copy_(product),
            Accumulate::Add => drop(target.g_add_(product)),
        }
    }
}

fn view_of(layout: &UnitLayout, flat: &Tensor, index: usize) -> Tensor {
    let param = &layout.params()[index];
    flat.narrow(0, param.offset as i64, param.numel as i64).view(param.shape.as_slice())
}

/// Parameters `range` as one matrix view, if no padding lies between them.
fn stacked_view(
    layout: &UnitLayout,
    flat: &Tensor,
    range: std::ops::Range<usize>,
) -> Option<Tensor> {
    let params = &layout.params()[range];
    let adjacent = params.windows(2).all(|pair| pair[0].offset + pair[0].numel == pair[1].offset);
    let numel: usize = params.iter().map(|param| param.numel).sum();
    let columns = *params[0].shape.last().expect("a stacked parameter is a matrix");
    adjacent.then(|| flat.narrow(0, params[0].offset as i64, numel as i64).view([-1, columns]))
}
