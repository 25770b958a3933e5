//! What an update of libtorch tensors reads and writes, on any device; CUDA above all.

use crate::error::{Error, Result};
use tch::{Kind, Tensor};

/// One range of a flat buffer as tensors of one device; the twin of [`crate::Elements`].
#[derive(Debug)]
pub struct TensorElements<'a> {
    /// `[n]` master parameters, f32 or f64; read and written.
    pub master: &'a mut Tensor,
    /// `[n]` gradient before `grad_scale`, dtype of `master`; read only.
    pub grad: &'a Tensor,
    /// One `[n]` tensor for each of [`crate::Rule::state_kinds`], in that order, dtype of `master`;
    /// read and written. All start at zero.
    pub state: Vec<&'a mut Tensor>,
    /// `[n]` rounded copy that the model computes with, of any floating dtype; written.
    pub working: Option<&'a mut Tensor>,
}

impl<'a> TensorElements<'a> {
    /// The state as an array, once every length was compared with the master's.
    pub(crate) fn checked<const STATES: usize>(
        self,
        rule: &'static str,
        names: [&'static str; STATES],
    ) -> Result<CheckedTensors<'a, STATES>> {
        let expected = self.master.numel();
        let check = |buffer, found| {
            if found == expected { Ok(()) } else { Err(Error::Length { buffer, expected, found }) }
        };
        check("grad", self.grad.numel())?;
        if let Some(working) = &self.working {
            check("working", working.numel())?;
        }
        for (name, state) in names.iter().zip(&self.state) {
            check(name, state.numel())?;
        }
        let state = <[&mut Tensor; STATES]>::try_from(self.state)
            .map_err(|state| Error::StateCount { rule, expected: STATES, found: state.len() })?;
        Ok(CheckedTensors { master: self.master, grad: self.grad, state, working: self.working })
    }
}

/// [`TensorElements`] whose tensors are known to have one length.
pub(crate) struct CheckedTensors<'a, const STATES: usize> {
    pub(crate) master: &'a mut Tensor,
    pub(crate) grad: &'a Tensor,
    pub(crate) state: [&'a mut Tensor; STATES],
    pub(crate) working: Option<&'a mut Tensor>,
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
