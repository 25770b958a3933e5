#![doc = include_str!("README.md")]

pub mod anatomy;
pub mod appended;
pub mod axis;
pub mod certificate;
pub mod compared;
pub mod compose;
pub mod depth;
pub mod error;
pub mod filling;
pub mod inherit;
pub mod ligo;
pub mod moments;
mod noise;
pub mod parts;
pub mod rows;
pub mod schemes;
pub mod shape;
pub mod start;
pub mod states;
pub mod stored;
#[cfg(test)]
mod tests;
pub mod width;
pub mod within;
pub mod writing;

pub use compose::{Steps, explain, grow, problems};
pub use error::{Error, Problem};
pub use parts::{NamedModel, Nature, Parts, Plane, named_weights, param_value};
pub use stored::StoredModel;
