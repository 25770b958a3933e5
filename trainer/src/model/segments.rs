//! The documents of packed rows, in the forms in which layers ask for them.
//!
//! B batch, S sequence.

use tch::{Device, Kind, Tensor};

use super::compute::on_device;
use crate::kernel::attention;

/// Where a micro-batch's rows are cut: attention does not cross a cut, and positions count from 0
/// behind it, so that what is computed for a document does not depend on the rest of its row.
#[derive(Debug)]
pub struct Segments {
    /// `[B * S]` i64 on the device: positions within segments.
    position_ids: Tensor,
    /// `[B, S]` i64 on the device: a number for each segment.
    numbers: Tensor,
    /// For the CPU kernel.
    kernel: attention::Segments,
}

impl Segments {
    /// Segments that begin at `starts`, ascending indices into `[B, S]` flattened; each row begins
    /// one whether it is listed or not.
    ///
    /// # Panics
    /// If `starts` do not rise or one is outside the batch.
    pub fn new(device: Device, (batch, sequence): (i64, i64), starts: &[u32]) -> Self {
        let kernel = attention::Segments::new(batch as usize, sequence as usize, starts);
        let mut starts = starts.iter().map(|&start| i64::from(start)).peekable();
        let (mut position_ids, mut numbers) = (Vec::new(), Vec::new());
        let (mut start, mut number) = (0, 0);
        for index in 0..batch * sequence {
            if starts.next_if_eq(&index).is_some() || index % sequence == 0 {
                (start, number) = (index, number + 1);
            }
            position_ids.push(index - start);
            numbers.push(number);
        }
        let place = |values: &[i64]| on_device(Tensor::from_slice(values), device);
        let numbers = place(&numbers).view([batch, sequence]);
        Self { position_ids: place(&position_ids), numbers, kernel }
    }

    /// `[B * S]` i64: positions within segments.
    pub fn position_ids(&self) -> &Tensor {
        &self.position_ids
    }

    /// `[B, 1, S, S]` bool: which keys (last dim) each query does not see, those after it and those
    /// of other segments.
    pub fn hidden(&self) -> Tensor {
        let (_, s) = self.numbers.size2().expect("numbers are [B, S]");
        let future = Tensor::ones([s, s], (Kind::Bool, self.numbers.device())).triu(1);
        let other = self.numbers.unsqueeze(1).not_equal_tensor(&self.numbers.unsqueeze(2));
        other.logical_or(&future).unsqueeze(1)
    }

    pub(crate) fn for_kernel(&self) -> &attention::Segments {
        &self.kernel
    }
}
