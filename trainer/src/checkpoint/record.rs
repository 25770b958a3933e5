//! What goes into a checkpoint: tensors as bytes, and the state of the run between two steps.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::guard::GuardRecord;

/// The element types of stored tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dtype {
    /// Unsigned bytes: quantized optimizer state.
    U8,
    /// bfloat16: the model's weights.
    Bf16,
    /// IEEE half precision: weights of imported models.
    F16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl Dtype {
    /// Size of one element.
    #[must_use]
    pub fn size_bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The name in the header of a safetensors file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "U8",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
            Self::F64 => "F64",
        }
    }
}

/// A tensor's name, element type and shape, without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The parameter's name, or `<kind>/<parameter>` for optimizer state.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Length of each dim; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes the values take.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size_bytes()
    }
}

impl fmt::Display for TensorSpec {
    /// `F32 [4, 8]`, without the name.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {:?}", self.dtype.name(), self.shape)
    }
}

/// A tensor to be stored: row-major, little-endian bytes, borrowed or owned.
#[derive(Clone, Debug)]
pub struct TensorRecord<'a> {
    /// Name, element type and shape.
    pub spec: TensorSpec,
    /// The values.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> TensorRecord<'a> {
    /// A record of `bytes`, whose length is checked when it is saved.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        let spec = TensorSpec { name: name.into(), dtype, shape: shape.to_vec() };
        Self { spec, bytes: bytes.into() }
    }
}

/// All that a run is between two steps, besides its tensors.
///
/// Only integers and text, so that what is read is bit for bit what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunStateRecord {
    /// The last optimizer step done.
    pub step: u64,
    /// Tokens trained on so far, over all ranks.
    pub num_tokens: u64,
    /// Model FLOPs spent so far, over all ranks; more than a `u64` holds in a large run.
    pub total_flops: u128,
    /// The seed of all random numbers.
    pub seed: u64,
    /// Updates of each parameter so far; they differ once a model has grown.
    pub parameter_steps: BTreeMap<String, u64>,
    /// What the data was, to refuse to go on with other data.
    pub data_fingerprint: String,
    /// The weights of a mixture's sources from step to step, as TOML; empty where there is none.
    #[serde(default)]
    pub data_stages: String,
    /// The resolved plan of the run, as TOML.
    pub plan_toml: String,
    /// What the guards remember.
    #[serde(default)]
    pub guard: GuardRecord,
    /// The version of Grove that wrote the checkpoint.
    pub program_version: String,
}
