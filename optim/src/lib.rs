//! The optimizer room of Grove.
#![doc = include_str!("../README.md")]

mod adamw;
mod clip;
mod dispatch;
mod elements;
mod error;
mod group;
mod lion;
mod real;
mod rule;
mod schedule;
mod sweep;
mod tensor;

pub use adamw::{AdamW, AdamWConfig};
pub use clip::{
    BLOCK_ELEMENTS, LEAF_ELEMENTS, block_squared_norms, clip_scale, num_blocks, squared_norm,
    tree_sum,
};
pub use elements::{Elements, Scalars, Working};
pub use error::{Error, Result};
pub use group::{Group, Groups, Role};
pub use lion::{Lion, LionConfig};
pub use real::Real;
pub use rule::{Rule, RuleConfig, StateKind};
pub use schedule::{Decay, Schedule, ScheduleConfig};
pub use tensor::{TensorElements, squared_norm_tensor};
