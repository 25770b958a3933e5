//! What a teacher says of a micro-batch, and the loss of a chunk of logits against it.
//!
//! A lesson holds the teacher's last hidden states, not its logits: those are computed a chunk of
//! rows at a time beside the student's, and go with the chunk.

use tch::{Kind, Tensor};

use super::compute::{Compute, per_element};
use super::head::{Targets, loss_of};
use crate::kernel::{distillation as kernel, view};

pub use crate::kernel::distillation::Mixture;

/// A frozen model's view of a micro-batch.
#[derive(Debug)]
pub struct Lesson {
    /// What the teacher's output matrix is applied to, `[N, Dt]`, compute dtype.
    pub hidden: Tensor,
    /// That matrix, `[V, Dt]`, compute dtype.
    pub output: Tensor,
    /// How much it counts.
    pub mixture: Mixture,
    /// Where the summed divergence goes, without its weight: a scalar f64 on the device, added to.
    pub divergence: Tensor,
}

impl Lesson {
    /// The summed cross-entropy of a chunk; `logits` is overwritten by the gradient of the mixture,
    /// and the summed divergence is added to [`Lesson::divergence`].
    ///
    /// # Shapes
    /// - `logits`: `[n, V]`, `hidden`: `[n, Dt]`, `targets`: `[n]` i64; returns a scalar f64 on the device
    pub(super) fn loss_and_grad(
        &self,
        compute: &Compute,
        logits: &mut Tensor,
        (hidden, targets): (&Tensor, &Tensor),
    ) -> Tensor {
        let taught = compute.product(hidden, &self.output.tr());
        let mut divergence = self.divergence.shallow_clone();
        if compute.has_kernels() {
            let columns = logits.size()[1] as usize;
            let sums = per_element!(compute, E => kernel::mixed_loss_and_grad(
                &compute.pool,
                (view::slice_mut::<E>(logits), view::slice(&taught)),
                view::slice(targets),
                columns,
                self.mixture,
            ));
            divergence += sums.divergence;
            return Tensor::from(sums.loss);
        }
        let (loss, summed) = mixed(compute, logits, (&taught, targets), self.mixture);
        divergence += summed;
        loss
    }
}

/// The same in tensor operations: loss and divergence of a chunk.
fn mixed(
    compute: &Compute,
    logits: &mut Tensor,
    (taught, targets): (&Tensor, &Tensor),
    Mixture { weight, temperature }: Mixture,
) -> (Tensor, Tensor) {
    let wide = logits.to_kind(compute.accumulation());
    let targets = Targets::new(targets);
    let loss = loss_of(&wide, &targets);
    let soft = (&wide / temperature).log_softmax(-1, wide.kind());
    let taught = taught.to_kind(wide.kind()) / temperature;
    let taught = taught.log_softmax(-1, wide.kind());
    let chances = taught.exp();
    let terms =
        (&chances * (taught - &soft)).sum_dim_intlist([-1i64].as_slice(), true, wide.kind());
    let terms = terms.masked_fill(&targets.ignored, 0.0).sum(Kind::Double);
    let mut grad = wide.softmax(-1, wide.kind());
    let minus_one = Tensor::full(targets.ids.size().as_slice(), -1.0, (wide.kind(), wide.device()));
    let _ = grad.scatter_add_(-1, &targets.ids, &minus_one);
    let grad = grad * (1.0 - weight) + (soft.exp() - chances) * (weight * temperature);
    logits.copy_(&grad.masked_fill(&targets.ignored, 0.0));
    (loss, terms * (temperature * temperature))
}
