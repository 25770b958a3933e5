//! The second half of a whole-matrix step: decay, and subtraction of an update from flat shards.

use tch::Tensor;

use crate::dispatch::{Kernel, SimdLevel};
use crate::elements::{Scalars, Working};
use crate::error::{Error, Result};
use crate::real::Real;

/// Whether the decoupled weight decay comes before or after the update is subtracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecayOrder {
    /// `theta <- (1 - lr weight_decay) theta - update`.
    Before,
    /// `theta <- (1 - lr weight_decay) (theta - update)`.
    After,
}

impl DecayOrder {
    /// Applies any range of an update to the same range of a master, in one pass over memory on
    /// the calling thread; an element gets the same bits wherever ranges are cut.
    ///
    /// # Shapes
    /// `master`, `update` (learning rate included) and `working`: `[n]`.
    ///
    /// # Errors
    /// [`Error::Scalar`] or [`Error::Length`], before anything is written.
    pub fn apply<T: Real>(
        self,
        master: &mut [T],
        update: &[T],
        working: Working,
        scalars: &Scalars,
    ) -> Result<()> {
        scalars.validate()?;
        let expected = master.len();
        let check = |buffer, found| {
            if found == expected { Ok(()) } else { Err(Error::Length { buffer, expected, found }) }
        };
        check("update", update.len())?;
        if let Working::Bf16(copy) = &working {
            check("working", copy.len())?;
        }
        let decay = T::from_f64(scalars.decay());
        SimdLevel::detect().run(Subtraction { order: self, master, update, working, decay });
        Ok(())
    }

    /// The same by in-place libtorch operations, for tensors of any device; the parts of a flat
    /// buffer and of a flattened update, or the whole of both.
    ///
    /// # Shapes
    /// `update` and `working` have the number of elements of `master`.
    ///
    /// # Errors
    /// As [`DecayOrder::apply`], and [`Error::Tensor`] if libtorch refuses an operation.
    pub fn apply_tensor(
        self,
        master: &mut Tensor,
        update: &Tensor,
        working: Option<&mut Tensor>,
        scalars: &Scalars,
    ) -> Result<()> {
        scalars.validate()?;
        let expected = master.numel();
        let check = |buffer, found| {
            if found == expected { Ok(()) } else { Err(Error::Length { buffer, expected, found }) }
        };
        check("update", update.numel())?;
        if let Some(copy) = &working {
            check("working", copy.numel())?;
        }
        tch::no_grad(|| {
            let update = update.f_reshape(master.size())?;
            if self == Self::Before {
                let _ = master.f_mul_scalar_(scalars.decay())?;
            }
            let _ = master.f_sub_(&update)?;
            if self == Self::After {
                let _ = master.f_mul_scalar_(scalars.decay())?;
            }
            if let Some(copy) = working {
                copy.f_copy_(&master.f_reshape(copy.size())?)?;
            }
            Ok(())
        })
    }
}

/// One pass of a decay and a subtraction.
struct Subtraction<'a, T: Real> {
    order: DecayOrder,
    master: &'a mut [T],
    update: &'a [T],
    working: Working<'a>,
    decay: T,
}

impl<T: Real> Kernel for Subtraction<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { order, master, update, working, decay } = self;
        match order {
            DecayOrder::Before => {
                pass(
                    master,
                    update,
                    working,
                    #[inline(always)]
                    |theta: T, update: T| theta * decay - update,
                );
            }
            DecayOrder::After => {
                pass(
                    master,
                    update,
                    working,
                    #[inline(always)]
                    |theta: T, update: T| (theta - update) * decay,
                );
            }
        }
    }
}

/// The loops, with and without a rounded copy.
#[inline(always)]
fn pass<T: Real>(
    master: &mut [T],
    update: &[T],
    working: Working,
    element: impl Fn(T, T) -> T + Copy,
) {
    match working {
        Working::None => {
            for (theta, &update) in master.iter_mut().zip(update) {
                *theta = element(*theta, update);
            }
        }
        Working::Bf16(copy) => {
            for ((theta, &update), copy) in master.iter_mut().zip(update).zip(copy) {
                let updated = element(*theta, update);
                *theta = updated;
                *copy = updated.to_bf16();
            }
        }
    }
}

#[cfg(test)]
mod tests;
