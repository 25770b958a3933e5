//! The optimizer room of Grove.
#![doc = include_str!("../README.md")]

mod adamw;
mod adamw_8bit;
mod batch_ramp;
mod clip;
mod column;
mod cuda;
mod dispatch;
mod elements;
mod error;
mod group;
mod lion;
mod lion_8bit;
mod phase;
mod quantize;
mod real;
mod rounding;
mod rule;
#[cfg(test)]
mod sample;
mod schedule;
mod schedule_free;
mod sophia;
mod state;
mod sweep;
mod tensor;
mod tensor_column;
mod whole;

pub use adamw::{AdamW, AdamWConfig};
pub use adamw_8bit::{AdamW8bit, AdamW8bitConfig};
pub use batch_ramp::BatchRamp;
pub use clip::{
    BLOCK_ELEMENTS, LEAF_ELEMENTS, block_squared_norms, clip_scale, num_blocks, squared_norm,
    tree_sum,
};
pub use cuda::Kernels;
pub use elements::{Elements, Scalars, StepNumbers, Working};
pub use error::{Error, Result};
pub use group::{Group, Groups, Role, Rules};
pub use lion::{Lion, LionConfig};
pub use lion_8bit::{Lion8bit, Lion8bitConfig};
pub use phase::{Phase, PhaseMode};
pub use quantize::CodeBook;
pub use real::Real;
pub use rule::{Rule, RuleConfig};
pub use schedule::{Decay, Schedule, ScheduleConfig};
pub use schedule_free::{ScheduleFree, ScheduleFreeConfig};
pub use sophia::{HessianEstimate, Sophia, SophiaConfig};
pub use state::{
    MIN_QUANTIZED_ELEMENTS, QUANTIZED_BLOCK_ELEMENTS, Start, StateDtype, StateKind, StateSlice,
    StateSpec, Storage,
};
pub use tensor::{TensorElements, squared_norm_tensor};
pub use whole::{
    Adafactor, AdafactorConfig, AdamMini, AdamMiniConfig, Came, CameConfig, DecayOrder, Galore,
    GaloreConfig, Muon, MuonConfig, MuonPrecision, MuonScale, Orientation, ParamFacts, Part, Soap,
    SoapConfig, StepScale, WholeRule, WholeRuleConfig, WholeStateKind, WholeStateSpec,
    WholeTensors,
};
