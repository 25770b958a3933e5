//! Final norm, output product and cross-entropy, a chunk of rows at a time: the logits of all
//! positions are never held at once, and their gradient replaces them in place.

use tch::{Kind, Tensor};

use super::branch::Entry;
use super::compute::{Compute, per_element};
use super::draw::labels;
use super::lesson::Lesson;
use super::norm::NormStatistics;
use super::ramp::masked;
use super::units::{Orientation, Projection};
use super::views::{Accumulate, Grads, Weights};
use crate::kernel::{cross_entropy as kernel, view};

/// The final norm and the output matrix, which is the token embedding itself when tied.
#[derive(Debug)]
pub struct Head {
    /// What stands before the output product.
    pub entry: Entry,
    /// The output matrix `[V, D]` in its unit.
    pub output: Projection,
    /// Rows of logits held at once.
    pub rows: i64,
    /// The factor on the logits.
    pub multiplier: f64,
    /// What training adds to the cross-entropy; an evaluation adds nothing.
    pub terms: kernel::Terms,
    /// On what the output matrix reads, where it is the embedding and its channels are masked:
    /// `[D]`, compute dtype.
    pub mask: Option<Tensor>,
}

/// Where the head's parameters are: the norm's unit, and the unit that holds the output matrix
/// (the same one, or the embedding's when tied).
#[derive(Clone, Copy, Debug)]
pub struct HeadWeights<'a> {
    /// The unit of the final norm.
    pub norm: Weights<'a>,
    /// The unit of the output matrix.
    pub output: Weights<'a>,
}

/// Where the gradients of [`HeadWeights`] go: wide buffers.
#[derive(Clone, Copy, Debug)]
pub struct HeadGrads<'a> {
    /// The unit of the final norm.
    pub norm: Grads<'a>,
    /// The unit of the output matrix.
    pub output: Grads<'a>,
}

/// What predictions are held against.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// `[N]` i64, [`kernel::IGNORED_TARGET`] for none.
    pub targets: &'a Tensor,
    /// `[N]` f64, uniform numbers by which labels are drawn from the model's own predictions.
    pub draws: Option<&'a Tensor>,
    /// What a teacher says, which then counts in the gradient.
    pub lesson: Option<&'a Lesson>,
}

impl Head {
    /// The output matrix at `index` of its unit.
    pub fn output_at(index: usize) -> Projection {
        Projection {
            weights: index..index + 1,
            bias: None,
            orientation: Orientation::OutIn,
            may_be_fp8: false,
        }
    }

    /// The summed cross-entropy over all positions that count, forward only.
    ///
    /// # Shapes
    /// - `x`: `[N, D]`, `targets`: `[N]` i64, [`kernel::IGNORED_TARGET`] for none; returns a scalar f64 on the device
    pub fn loss(
        &self,
        compute: &Compute,
        weights: &HeadWeights<'_>,
        x: &Tensor,
        targets: &Tensor,
    ) -> Tensor {
        let (h, _) = self.scaled_norm(compute, weights, x);
        let mut sum = Tensor::zeros([], (Kind::Double, compute.device));
        for (h, targets) in self.chunks(&h).zip(self.chunks(targets)) {
            let mut logits = self.output.forward(compute, &weights.output, &h);
            sum += loss_only(compute, &mut logits, &targets);
        }
        sum
    }

    /// The summed cross-entropy with [`Head::terms`] and the gradient of `x`; adds the head's own
    /// gradients to `grads`. With draws, without the terms and against labels drawn by them from the
    /// model's predictions; with a lesson, without the terms too, the gradient is that of the mixture
    /// with the teacher, whose part of the loss goes to the lesson.
    ///
    /// # Shapes
    /// - `x`: `[N, D]`; returns a scalar f64 on the device and `[N, D]`
    pub fn loss_and_backward(
        &self,
        compute: &Compute,
        (weights, grads): (&HeadWeights<'_>, &HeadGrads<'_>),
        x: &Tensor,
        Labels { targets, draws, lesson }: Labels<'_>,
    ) -> (Tensor, Tensor) {
        let (h, statistics) = self.scaled_norm(compute, weights, x);
        let mut sum = Tensor::zeros([], (Kind::Double, compute.device));
        let dh = h.empty_like();
        let mut output_grads = grads.output;
        let terms = if draws.is_none() { self.terms } else { kernel::Terms::default() };
        let mut draws = draws.map(|draws| self.chunks(draws));
        let mut taught = lesson.map(|lesson| self.chunks(&lesson.hidden));
        for ((h, targets), mut dh) in
            self.chunks(&h).zip(self.chunks(targets)).zip(self.chunks(&dh))
        {
            let mut logits = self.output.forward(compute, &weights.output, &h);
            let drawn = draws.as_mut().and_then(Iterator::next);
            let drawn = drawn.map(|draws| labels(compute, &logits, &targets, &draws));
            let targets = match drawn {
                Some(drawn) => {
                    drawn.where_self(&targets.not_equal(kernel::IGNORED_TARGET), &targets)
                }
                None => targets,
            };
            sum += match (lesson, taught.as_mut().and_then(Iterator::next)) {
                (Some(lesson), Some(hidden)) => {
                    lesson.loss_and_grad(compute, &mut logits, (&hidden, &targets))
                }
                _ => loss_and_grad(compute, &mut logits, &targets, terms),
            };
            dh.copy_(&self.output.backward(compute, (&weights.output, &output_grads), &h, &logits));
            output_grads = output_grads.with(Accumulate::Add);
        }
        let dh = if self.multiplier == 1.0 { dh } else { dh * self.multiplier };
        let dh = masked(&dh, self.mask.as_ref());
        let params = (&weights.norm, &grads.norm);
        (sum, self.entry.backward(compute, params, (x, statistics.as_ref()), &dh, None))
    }

    /// The logits of all rows of `x`, for sampling and tests.
    ///
    /// # Shapes
    /// - `x`: `[N, D]`; returns `[N, V]` in the compute dtype
    pub fn logits(&self, compute: &Compute, weights: &HeadWeights<'_>, x: &Tensor) -> Tensor {
        self.output.forward(compute, &weights.output, &self.hidden(compute, weights, x))
    }

    /// What the output matrix is applied to.
    ///
    /// # Shapes
    /// - `x`: `[N, D]`; returns `[N, D]` in the compute dtype
    pub fn hidden(&self, compute: &Compute, weights: &HeadWeights<'_>, x: &Tensor) -> Tensor {
        self.scaled_norm(compute, weights, x).0
    }

    /// The normed `x` with the factor on the logits, which the product is linear in.
    fn scaled_norm(
        &self,
        compute: &Compute,
        weights: &HeadWeights<'_>,
        x: &Tensor,
    ) -> (Tensor, Option<NormStatistics>) {
        let (h, statistics) = self.entry.forward(compute, &weights.norm, x);
        let h = if self.multiplier == 1.0 { h } else { h * self.multiplier };
        (masked(&h, self.mask.as_ref()), statistics)
    }

    /// Views of `rows` rows each, the last one perhaps shorter.
    fn chunks(&self, tensor: &Tensor) -> impl Iterator<Item = Tensor> {
        let (tensor, rows, step) = (tensor.shallow_clone(), tensor.size()[0], self.rows);
        (0..rows)
            .step_by(step as usize)
            .map(move |first| tensor.narrow(0, first, step.min(rows - first)))
    }
}

/// The summed loss of one chunk; `logits` is overwritten by its gradient, as
/// [`kernel::loss_and_grad`] says.
fn loss_and_grad(
    compute: &Compute,
    logits: &mut Tensor,
    targets: &Tensor,
    terms: kernel::Terms,
) -> Tensor {
    if let (Some(fused), true) = (compute.fused_anywhere(), terms == kernel::Terms::default()) {
        return fused.loss_and_grad(logits, targets);
    }
    let columns = logits.size()[1] as usize;
    if compute.has_kernels() {
        return per_element!(compute, E => {
            let logits = view::slice_mut::<E>(logits);
            let targets = view::slice(targets);
            scalar(kernel::loss_and_grad(&compute.pool, logits, targets, columns, terms))
        });
    }
    let wide = logits.to_kind(compute.accumulation());
    let targets = Targets::new(targets);
    let mut sum = loss_of(&wide, &targets);
    let mut grad = wide.softmax(-1, wide.kind());
    let kernel::Terms { z_loss, label_smoothing } = terms;
    if z_loss != 0.0 {
        let log_sum = wide.logsumexp([-1i64].as_slice(), true);
        sum += (log_sum.square() * z_loss).masked_fill(&targets.ignored, 0.0).sum(Kind::Double);
        grad *= log_sum * (2.0 * z_loss) + 1.0;
    }
    if label_smoothing != 0.0 {
        let to_mean = wide.gather(-1, &targets.ids, false)
            - wide.mean_dim([-1i64].as_slice(), true, wide.kind());
        sum += (to_mean * label_smoothing).masked_fill(&targets.ignored, 0.0).sum(Kind::Double);
        grad -= label_smoothing / columns as f64;
    }
    let ids = &targets.ids;
    let peak =
        Tensor::full(ids.size().as_slice(), label_smoothing - 1.0, (wide.kind(), wide.device()));
    let _ = grad.scatter_add_(-1, ids, &peak);
    logits.copy_(&grad.masked_fill(&targets.ignored, 0.0));
    sum
}

/// The summed loss of one chunk.
fn loss_only(compute: &Compute, logits: &mut Tensor, targets: &Tensor) -> Tensor {
    if let Some(fused) = compute.fused_anywhere() {
        return fused.loss_only(logits, targets);
    }
    if compute.has_kernels() {
        let columns = logits.size()[1] as usize;
        return per_element!(compute, E => {
            let logits = view::slice::<E>(logits);
            scalar(kernel::loss_only(&compute.pool, logits, view::slice(targets), columns))
        });
    }
    loss_of(&logits.to_kind(compute.accumulation()), &Targets::new(targets))
}

/// The targets of a chunk as tensor operations take them.
pub(super) struct Targets {
    /// `[n, 1]`: token ids; 0 where the target is ignored.
    pub(super) ids: Tensor,
    /// `[n, 1]` bool.
    pub(super) ignored: Tensor,
}

impl Targets {
    pub(super) fn new(targets: &Tensor) -> Self {
        let targets = targets.unsqueeze(-1);
        let ignored = targets.eq(kernel::IGNORED_TARGET);
        Self { ids: targets.masked_fill(&ignored, 0), ignored }
    }
}

/// `sum(logsumexp(row) - row[target])` in f64 over the rows that count.
pub(super) fn loss_of(wide: &Tensor, targets: &Targets) -> Tensor {
    let chosen = wide.gather(-1, &targets.ids, false);
    let losses = wide.logsumexp([-1i64].as_slice(), true) - chosen;
    losses.masked_fill(&targets.ignored, 0.0).sum(Kind::Double)
}

fn scalar(sum: Result<kernel::LossSum, crate::kernel::error::Error>) -> Tensor {
    Tensor::from(sum.expect("token ids are checked against the vocabulary when they are read").loss)
}
