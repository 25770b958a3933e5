#![doc = include_str!("../README.md")]

pub mod assignment;
pub mod collective;
pub mod error;
pub mod exact;
pub mod launch;
pub mod layout;

pub use assignment::Assignment;
pub use collective::{Collective, Handle, LocalCollective, Onto, Reduction};
pub use error::{Error, Result};
pub use exact::ExactSum;
pub use launch::{Environment, Launch, connect};
pub use layout::UnitLayout;
