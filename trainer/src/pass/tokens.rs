//! A micro-batch as the layers take it.

use std::rc::Rc;

use grove_data::Batch;
use tch::Tensor;

use crate::kernel::cross_entropy::IGNORED_TARGET;
use crate::model::compute::{Compute, on_device};
use crate::model::head::Labels;
use crate::model::lesson::Lesson;
use crate::model::segments::Segments;

/// Whether documents in one row see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Documents {
    /// They do: a row is one text.
    Together,
    /// They do not: what is computed for a document does not depend on the rest of its row.
    Apart,
}

/// Inputs `[B, S]` and targets `[B * S]` of a micro-batch, on the device.
#[derive(Debug)]
pub struct Tokens {
    /// `[B, S]` i64.
    pub inputs: Tensor,
    /// `[B * S]` i64: what follows each input; [`IGNORED_TARGET`] where that does not count.
    pub targets: Tensor,
    /// Where rows are cut; `None` if each is one segment.
    pub segments: Option<Rc<Segments>>,
    /// `[B * S]` f64 in `[0, 1)`: numbers by which to draw labels from the model's own predictions,
    /// to take the gradient against in place of the targets that count.
    pub draws: Option<Tensor>,
    /// What a teacher says of them, where one counts.
    pub lesson: Option<Lesson>,
    num_targets: u64,
}

impl Tokens {
    /// Splits rows of `S + 1` tokens.
    ///
    /// # Shapes
    /// - `rows`: `B * (S + 1)` token ids, row-major
    pub fn new(compute: &Compute, rows: &[u32], batch_size: usize) -> Self {
        let ids: Vec<i64> = rows.iter().map(|&id| i64::from(id)).collect();
        let rows = Tensor::from_slice(&ids).view([batch_size as i64, -1]);
        let length = rows.size()[1] - 1;
        let place = |first| {
            let part = rows.narrow(1, first, length).contiguous();
            on_device(part, compute.device)
        };
        let (inputs, targets) = (place(0), place(1).view(-1));
        let num_targets = targets.numel() as u64;
        Self { inputs, targets, segments: None, draws: None, lesson: None, num_targets }
    }

    /// The tokens of a batch, in which targets that its mask leaves out do not count, and, as
    /// `documents` says, its documents do not see each other.
    pub fn of_batch(compute: &Compute, batch: &Batch, documents: Documents) -> Self {
        let mut tokens = Self::new(compute, &batch.tokens, batch.batch_size);
        if let Some(mask) = &batch.loss_mask {
            let ignored: Vec<bool> = mask.iter().map(|counts| !counts).collect();
            let ignored = on_device(Tensor::from_slice(&ignored), compute.device);
            tokens.targets = tokens.targets.masked_fill(&ignored, IGNORED_TARGET);
            tokens.num_targets = batch.num_targets() as u64;
        }
        let is_cut = batch.segment_starts.len() > batch.batch_size;
        if is_cut && documents == Documents::Apart {
            let starts = &batch.segment_starts;
            tokens.segments = Some(Rc::new(Segments::new(compute.device, tokens.shape(), starts)));
        }
        tokens
    }

    /// The same tensors, without draws or a lesson.
    pub fn shallow_clone(&self) -> Self {
        Self {
            inputs: self.inputs.shallow_clone(),
            targets: self.targets.shallow_clone(),
            segments: self.segments.clone(),
            draws: None,
            lesson: None,
            num_targets: self.num_targets,
        }
    }

    /// What the head holds predictions against.
    pub fn labels(&self) -> Labels<'_> {
        let (draws, lesson) = (self.draws.as_ref(), self.lesson.as_ref());
        Labels { targets: &self.targets, draws, lesson }
    }

    /// Targets that count.
    pub fn num_targets(&self) -> u64 {
        self.num_targets
    }

    /// `(B, S)`.
    pub fn shape(&self) -> (i64, i64) {
        self.inputs.size2().expect("inputs are [B, S]")
    }
}
