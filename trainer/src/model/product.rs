//! Products of matrices, by this crate's kernel, by libtorch, or widened, as [`Products`] says.

use tch::{Kind, Tensor};

use super::compute::{Compute, Products, wide};
use super::views::{Accumulate, Joining};
use crate::kernel::matrix::{Finish, Operand, Output};
use crate::kernel::view;

/// Fewer rows than this are libtorch's: the kernel packs the other factor first, which would take
/// longer than multiplying it.
const MIN_ROWS: usize = 16;

impl Compute {
    /// `a b` for `a` `[n, k]` and `b` `[k, m]` in the compute dtype, rounded once.
    pub fn product(&self, a: &Tensor, b: &Tensor) -> Tensor {
        let _stopwatch = self.work.product();
        if let Some(product) = self.rounded_by_kernel((a, b), None, None, None) {
            return product;
        }
        match self.products {
            Products::Widened => wide(a).mm(&wide(b)).to_kind(self.kind),
            _ => a.mm(b),
        }
    }

    /// `bias + a b`, rounded once; `bias` is `[m]`.
    pub fn product_and_bias(&self, bias: &Tensor, a: &Tensor, b: &Tensor) -> Tensor {
        let _stopwatch = self.work.product();
        match self.rounded_by_kernel((a, b), None, Some(bias), None) {
            Some(product) => product,
            None => self.added(bias, a, b),
        }
    }

    /// `base + a b + bias`; `base` is `[n, m]` and `bias` `[m]`. Rounded once by the kernel;
    /// otherwise `base + bias` is rounded first.
    pub fn product_added(
        &self,
        base: &Tensor,
        (a, b): (&Tensor, &Tensor),
        bias: Option<&Tensor>,
    ) -> Tensor {
        let _stopwatch = self.work.product();
        if let Some(product) = self.rounded_by_kernel((a, b), Some(base), bias, None) {
            return product;
        }
        match bias {
            Some(bias) => self.added(&(base + bias), a, b),
            None => self.added(base, a, b),
        }
    }

    /// `a b + bias`, rounded and then finished row by row, if the kernel takes these factors.
    pub(crate) fn product_finished(
        &self,
        (a, b): (&Tensor, &Tensor),
        bias: Option<&Tensor>,
        finish: &dyn Finish,
    ) -> Option<Tensor> {
        let _stopwatch = self.work.product();
        self.rounded_by_kernel((a, b), None, bias, Some(finish))
    }

    fn added(&self, base: &Tensor, a: &Tensor, b: &Tensor) -> Tensor {
        match self.products {
            Products::Widened => wide(base).addmm(&wide(a), &wide(b)).to_kind(self.kind),
            _ => base.addmm(a, b),
        }
    }

    /// Puts or adds `a b` to `target`, if that can be done in one product: says whether it was.
    ///
    /// # Shapes
    /// - `a`: `[n, k]`, `b`: `[k, m]`, compute dtype; `target`: contiguous `[n, m]`, in the compute
    ///   dtype (rounded once, and only to be put) or the accumulation dtype (rounded to the compute
    ///   dtype before if it `rounds`, else not)
    pub(crate) fn product_onto(
        &self,
        target: &mut Tensor,
        (a, b): (&Tensor, &Tensor),
        Joining { accumulate, rounds }: Joining,
    ) -> bool {
        let _stopwatch = self.work.product();
        let add = accumulate == Accumulate::Add;
        let by_kernel = match target.kind() {
            Kind::BFloat16 if !add => self.multiply(a, b, || Output::Rounded {
                to: view::slice_mut(target),
                base: None,
                bias: None,
                finish: None,
            }),
            Kind::Float => {
                self.multiply(a, b, || Output::Wide { to: view::slice_mut(target), add, rounds })
            }
            _ => false,
        };
        if by_kernel || rounds {
            return by_kernel;
        }
        let (a, b) = match self.products {
            Products::Widened => (wide(a), wide(b)),
            _ => (a.shallow_clone(), b.shallow_clone()),
        };
        if a.kind() != target.kind() {
            return false;
        }
        match accumulate {
            Accumulate::Overwrite => drop(a.mm_out(target, &b)),
            Accumulate::Add => drop(target.addmm_(&a, &b)),
        }
        true
    }

    /// `a b + base + bias` by the kernel, if it takes them.
    fn rounded_by_kernel(
        &self,
        (a, b): (&Tensor, &Tensor),
        base: Option<&Tensor>,
        bias: Option<&Tensor>,
        finish: Option<&dyn Finish>,
    ) -> Option<Tensor> {
        if self.products != Products::Kernel {
            return None;
        }
        let base = base.map(Tensor::contiguous);
        let mut product = self.empty(&[a.size()[0], b.size()[1]]);
        let done = self.multiply(a, b, || Output::Rounded {
            to: view::slice_mut(&mut product),
            base: base.as_ref().map(view::slice),
            bias: bias.map(view::slice),
            finish,
        });
        done.then_some(product)
    }

    /// Multiplies by the kernel, if it takes these factors.
    fn multiply<'a>(&self, a: &Tensor, b: &Tensor, output: impl FnOnce() -> Output<'a>) -> bool {
        let mut kernel = self.multiplier.borrow_mut();
        let Some(kernel) = kernel.as_mut().filter(|_| self.products == Products::Kernel) else {
            return false;
        };
        let (Some(left), Some(right)) = (Stored::new(a), Stored::new(b)) else { return false };
        let (left, right) = (left.operand(), right.operand());
        let takes = left.rows >= MIN_ROWS;
        if takes {
            kernel.multiply(left, right, output());
        }
        takes
    }
}

/// A bf16 matrix on the CPU, or its transpose, as it lies in memory.
struct Stored {
    contiguous: Tensor,
    transposed: bool,
}

impl Stored {
    /// `None` for a matrix of which neither is contiguous, or of another dtype.
    fn new(matrix: &Tensor) -> Option<Self> {
        if matrix.kind() != Kind::BFloat16 || matrix.dim() != 2 {
            return None;
        }
        if matrix.is_contiguous() {
            return Some(Self { contiguous: matrix.shallow_clone(), transposed: false });
        }
        let transpose = matrix.tr();
        let stored = Self { contiguous: transpose, transposed: true };
        stored.contiguous.is_contiguous().then_some(stored)
    }

    fn operand(&self) -> Operand<'_> {
        let (first, second) = self.contiguous.size2().expect("a matrix has two dims");
        let (rows, columns) = match self.transposed {
            true => (second as usize, first as usize),
            false => (first as usize, second as usize),
        };
        let elements = view::slice(&self.contiguous);
        Operand { elements, rows, columns, transposed: self.transposed }
    }
}
