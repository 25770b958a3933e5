//! Softmax cross-entropy.

use tch::{Kind, Tensor};

use super::source::Kernel;
use super::{Call, Fused, Grid, address};

impl Fused {
    /// The summed loss, a scalar f64 on the device; `logits` become its gradient.
    ///
    /// # Shapes
    /// - `logits`: `[n, V]`, any `V`; `targets`: `[n]` i64, token ids or the ignored one
    pub fn loss_and_grad(&self, logits: &mut Tensor, targets: &Tensor) -> Tensor {
        self.loss(Kernel::LossAndGrad, logits, targets)
    }

    /// The loss of [`Fused::loss_and_grad`] alone.
    pub fn loss_only(&self, logits: &Tensor, targets: &Tensor) -> Tensor {
        self.loss(Kernel::LossOnly, logits, targets)
    }

    fn loss(&self, kernel: Kernel, logits: &Tensor, targets: &Tensor) -> Tensor {
        let (rows, columns) = logits.size2().expect("logits are [n, V]");
        let losses = Tensor::empty([rows], (Kind::Double, logits.device()));
        let pointers = [
            self.activations(logits, rows * columns),
            address(targets, Kind::Int64, rows),
            address(&losses, Kind::Double, rows),
        ];
        self.run(kernel, Grid::rows(rows, columns), &Call::new(pointers, [rows, columns]));
        losses.sum(Kind::Double)
    }
}
