//! What an update of libtorch tensors reads and writes, on any device; CUDA above all.

use crate::elements::Scalars;
use crate::error::{Error, Result};
use crate::rounding::Rounding;
use crate::state::{QUANTIZED_BLOCK_ELEMENTS, StateSpec, Storage};
use crate::tensor_column::{TensorColumn, check_state, tensor_columns};
use tch::{Kind, Tensor};

/// One range of one parameter as tensors of one device; the twin of [`crate::Elements`].
#[derive(Debug)]
pub struct TensorElements<'a> {
    /// `[n]` master parameters, f32 or f64; read and written.
    pub master: &'a mut Tensor,
    /// `[n]` gradient before `grad_scale`, dtype of `master`; read only.
    pub grad: &'a Tensor,
    /// One tensor for each of [`crate::Rule::state_specs`], in that order; read and written.
    /// Dtypes: that of `master`, bf16, u8 for codes, f32 for scales.
    pub state: Vec<&'a mut Tensor>,
    /// `[n]` rounded copy that the model computes with, of any floating dtype; written.
    pub working: Option<&'a mut Tensor>,
    /// Index of the range's first element within its parameter.
    pub first: usize,
}

impl<'a> TensorElements<'a> {
    /// Whether some state is quantized: which form of a quantized rule's states these are.
    pub(crate) fn has_codes(&self) -> bool {
        self.state.iter().any(|s| s.kind() == Kind::Uint8)
    }

    /// The states as columns, once every length and storage was compared with what `rule` takes.
    pub(crate) fn checked<const STATES: usize>(
        self,
        rule: &'static str,
        specs: &[StateSpec],
        scalars: &Scalars,
    ) -> Result<CheckedTensors<'a, STATES>> {
        self.check_lengths(specs, scalars)?;
        Ok(CheckedTensors {
            state: tensor_columns(rule, specs, self.state, self.master)?,
            master: self.master,
            grad: self.grad,
            working: self.working,
            first: self.first,
            rounding: scalars.rounding(),
        })
    }

    /// [`TensorElements::checked`] for those who keep the tensors as they are.
    pub(crate) fn check(
        &self,
        rule: &'static str,
        specs: &[StateSpec],
        scalars: &Scalars,
    ) -> Result<()> {
        self.check_lengths(specs, scalars)?;
        let (expected, found) = (specs.len(), self.state.len());
        if expected != found {
            return Err(Error::StateCount { rule, expected, found });
        }
        specs
            .iter()
            .zip(&self.state)
            .try_for_each(|(spec, state)| check_state(*spec, state, self.master))
    }

    /// Compares all but the states.
    fn check_lengths(&self, specs: &[StateSpec], scalars: &Scalars) -> Result<()> {
        scalars.validate()?;
        let expected = self.master.numel();
        let check = |buffer, found| {
            if found == expected { Ok(()) } else { Err(Error::Length { buffer, expected, found }) }
        };
        check("grad", self.grad.numel())?;
        if let Some(working) = &self.working {
            check("working", working.numel())?;
        }
        let quantized = specs.iter().any(|spec| spec.storage == Storage::BlockScale);
        if quantized && !self.first.is_multiple_of(QUANTIZED_BLOCK_ELEMENTS) {
            return Err(Error::WithinBlock { first: self.first });
        }
        Ok(())
    }
}

/// [`TensorElements`] whose tensors are known to fit together.
pub(crate) struct CheckedTensors<'a, const STATES: usize> {
    pub(crate) master: &'a mut Tensor,
    pub(crate) grad: &'a Tensor,
    state: [TensorColumn<'a>; STATES],
    working: Option<&'a mut Tensor>,
    first: usize,
    rounding: Rounding,
}

impl<const STATES: usize> CheckedTensors<'_, STATES> {
    /// Each state in the dtype of the master. States stored so are the tensors themselves, others
    /// temporaries; either way the rule changes them in place and hands them to
    /// [`CheckedTensors::finish`].
    pub(crate) fn load(&self) -> Result<[Tensor; STATES]> {
        let loaded: Result<Vec<_>> =
            self.state.iter().map(|s| s.load(self.master.kind())).collect();
        Ok(loaded?.try_into().expect("one tensor a state"))
    }

    /// Stores the states and rounds the master to the working copy.
    pub(crate) fn finish(self, states: &[Tensor; STATES]) -> Result<()> {
        let uses_random = self.state.iter().any(|s| matches!(s, TensorColumn::Bf16(_)));
        let random = match uses_random {
            true => Some(self.rounding.random_tensor(self.first, self.master)?),
            false => None,
        };
        for (i, (column, values)) in self.state.into_iter().zip(states).enumerate() {
            column.store(values, random.as_ref(), 16 * i as i64)?;
        }
        if let Some(working) = self.working {
            working.f_copy_(self.master)?;
        }
        Ok(())
    }
}

/// Sum of squares of a tensor of any device, as a scalar f64 tensor there (no synchronization).
///
/// Accumulates in f64, in libtorch's order: the bits depend on device and shape, unlike those of
/// [`crate::squared_norm`].
///
/// # Errors
/// [`Error::Tensor`] if libtorch refuses, for instance an integer tensor.
pub fn squared_norm_tensor(values: &Tensor) -> Result<Tensor> {
    let norm = tch::no_grad(|| values.f_norm_scalaropt_dtype(2.0, Kind::Double))?;
    Ok(norm.f_square()?)
}

#[cfg(test)]
mod tests;
