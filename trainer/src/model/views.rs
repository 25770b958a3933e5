//! A unit's parameters as layers see them: views into flat buffers, handed in for the duration of
//! a call. Layers hold no tensors, so a unit's buffers may come and go between calls.

use grove_parallel::UnitLayout;
use tch::{Kind, Tensor};

use super::compute::Compute;
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

/// Whether a gradient replaces what its buffer holds (the first part of it) or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// Replace: the buffer's old content is never read, so it needs no zeroing pass.
    Overwrite,
    /// Add to what earlier parts left.
    Add,
}

/// How the gradient of a parameter joins what its buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joining {
    /// Replace or add. Adding needs a buffer of the accumulation dtype.
    pub accumulate: Accumulate,
    /// Whether a gradient in the accumulation dtype is rounded to the compute dtype before: so one
    /// is that goes straight to the sums over micro-batches, and is the same as if it had gone
    /// through a buffer of the compute dtype.
    pub rounds: bool,
}

/// Where the gradient of one micro-batch of one unit goes: the compute dtype, to which each value is
/// rounded once, or the accumulation dtype where a gradient comes in parts or joins others.
#[derive(Clone, Copy, Debug)]
pub struct Grads<'a> {
    /// Names, shapes and offsets.
    pub layout: &'a UnitLayout,
    /// The flat buffer, at least `layout.padded_numel()` elements.
    pub flat: &'a Tensor,
    /// How it takes gradients.
    pub joining: Joining,
}

impl Grads<'_> {
    /// The same with gradients that replace or add.
    #[must_use]
    pub fn with(self, accumulate: Accumulate) -> Self {
        Self { joining: Joining { accumulate, ..self.joining }, ..self }
    }

    /// A sum in the accumulation dtype to add the gradient of parameter `index` to, in its shape:
    /// a view of the buffer if that takes it as it is, else apart. [`Grads::close`] brings it home.
    pub fn open(&self, compute: &Compute, index: usize) -> Tensor {
        let mut view = view_of(self.layout, self.flat, index);
        if view.kind() != compute.accumulation() || self.joining.rounds {
            return Tensor::zeros(view.size(), (compute.accumulation(), view.device()));
        }
        if self.joining.accumulate == Accumulate::Overwrite {
            let _ = view.zero_();
        }
        view
    }

    /// Brings a sum of [`Grads::open`] to the buffer, rounded to the compute dtype, unless it lies
    /// there already.
    pub fn close(&self, compute: &Compute, index: usize, sum: &Tensor) {
        let mut view = view_of(self.layout, self.flat, index);
        if view.data_ptr() == sum.data_ptr() {
            return;
        }
        let rounded = sum.to_kind(compute.kind);
        match self.joining.accumulate {
            Accumulate::Overwrite => view.copy_(&rounded),
            Accumulate::Add => drop(view.g_add_(&rounded)),
        }
    }

    /// Puts or adds `a^T b` to parameters `range`, stacked along dim 0.
    ///
    /// # Shapes
    /// - `a`: `[N, rows]`, `b`: `[N, columns]`, compute dtype; the stacked gradient is
    ///   `[rows, columns]`
    ///
    /// The product is rounded once to the compute dtype where the buffer has it, or wants it. Into
    /// another it accumulates in place, but for libtorch's products of bf16, which are rounded to bf16
    /// once and added in f32.
    pub fn add_product(
        &self,
        compute: &Compute,
        range: std::ops::Range<usize>,
        a: &Tensor,
        b: &Tensor,
    ) {
        let mut joint = stacked_view(self.layout, self.flat, range.clone());
        if let Some(target) = &mut joint
            && compute.product_onto(target, (&a.tr(), b), self.joining)
        {
            return;
        }
        self.add_stacked(compute, range, &compute.product(&a.tr(), b));
    }

    /// Puts or adds `product` `[rows, columns]` to parameters `range`, stacked along dim 0.
    pub fn add_stacked(&self, compute: &Compute, range: std::ops::Range<usize>, product: &Tensor) {
        match stacked_view(self.layout, self.flat, range.clone()) {
            Some(target) => self.add(compute, target, product),
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
        let widens = product.kind() == Kind::BFloat16 && target.kind() == Kind::Float;
        if compute.has_kernels() && widens {
            let target = view::slice_mut::<f32>(&mut target);
            let product = view::slice::<half::bf16>(product);
            match self.joining.accumulate {
                Accumulate::Overwrite => {
                    accumulate::cast::<f32, half::bf16>(&compute.pool, product, target)
                }
                Accumulate::Add => accumulate::add_assign(&compute.pool, target, product),
            }
            return;
        }
        match self.joining.accumulate {
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
