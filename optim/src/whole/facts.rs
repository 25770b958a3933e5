//! What a whole-matrix rule must know of a parameter besides its numbers.

use crate::error::{Error, Result};
use crate::group::Role;

/// How a weight matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orientation {
    /// `[out, in]`, `y = x W^T` (Llama). Also tables: a row of an embedding is an output.
    OutIn,
    /// `[in, out]`, `y = x W` (the `Conv1D` of GPT-2).
    InOut,
}

/// Consecutive outputs of a parameter that form one matrix of their own: q, k or v of a fused
/// projection, or all outputs where nothing is fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Number of outputs.
    pub num_outputs: i64,
    /// Consecutive outputs that share one second moment in Adam-mini; divides `num_outputs`.
    /// The paper's choice is the size of a head for q and k, and 1 (a neuron, a token) else.
    pub outputs_per_block: i64,
}

impl Part {
    /// Number of Adam-mini's blocks.
    pub fn num_blocks(&self) -> i64 {
        self.num_outputs / self.outputs_per_block
    }
}

/// Shape, role and structure of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamFacts {
    /// `[rows, cols]` or `[n]`, as in checkpoints.
    pub shape: Vec<i64>,
    /// What the parameter is for.
    pub role: Role,
    /// Which dim of a matrix counts its outputs. A vector has outputs only.
    pub orientation: Orientation,
    /// The parts along the outputs, in order; together all outputs.
    pub parts: Vec<Part>,
}

impl ParamFacts {
    /// A parameter of one part. A block is one output, but for a norm all of it (Adam-mini's
    /// choice; a norm's bias, which the reference code gives full Adam, wants blocks of 1).
    pub fn new(shape: &[i64], role: Role, orientation: Orientation) -> Self {
        let mut facts = Self { shape: shape.to_vec(), role, orientation, parts: Vec::new() };
        let num_outputs = facts.num_outputs();
        let outputs_per_block = if role == Role::Norm { num_outputs } else { 1 };
        facts.parts.push(Part { num_outputs, outputs_per_block });
        facts
    }

    /// The same parameter, made of these parts.
    #[must_use]
    pub fn with_parts(self, parts: Vec<Part>) -> Self {
        Self { parts, ..self }
    }

    /// The dim that counts outputs.
    pub fn output_dim(&self) -> usize {
        match self.orientation {
            Orientation::InOut if self.shape.len() == 2 => 1,
            _ => 0,
        }
    }

    /// Number of outputs; 0 for a shape of no dims.
    pub fn num_outputs(&self) -> i64 {
        self.shape.get(self.output_dim()).copied().unwrap_or(0)
    }

    /// Number of elements.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Number of Adam-mini's blocks.
    pub fn num_blocks(&self) -> i64 {
        self.parts.iter().map(Part::num_blocks).sum()
    }

    /// `[rows, cols]` of a matrix.
    pub(crate) fn matrix(&self) -> Option<[i64; 2]> {
        <[i64; 2]>::try_from(&self.shape[..]).ok()
    }

    /// Refuses shapes that are neither vector nor matrix, and parts that do not make up the
    /// outputs.
    pub(crate) fn validate(&self) -> Result<()> {
        let shaped = matches!(self.shape.len(), 1 | 2) && self.shape.iter().all(|&size| size > 0);
        if !shaped {
            return Err(Error::WholeShape { shape: self.shape.clone() });
        }
        let whole = |part: &Part| {
            let Part { num_outputs, outputs_per_block } = *part;
            num_outputs > 0 && outputs_per_block > 0 && num_outputs % outputs_per_block == 0
        };
        let sum: i64 = self.parts.iter().map(|part| part.num_outputs).sum();
        if sum == self.num_outputs() && self.parts.iter().all(whole) {
            return Ok(());
        }
        Err(Error::WholeParts {
            shape: self.shape.clone(),
            num_outputs: self.num_outputs(),
            parts: self.parts.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
