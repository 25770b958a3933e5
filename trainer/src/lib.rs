#![doc = include_str!("../README.md")]

pub mod backend;
pub mod beacon;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod config;
pub mod corpus;
pub mod device;
pub mod error;
pub mod eval;
pub mod folder;
pub mod gradients;
pub mod growth;
pub mod kernel;
pub mod loaded;
pub mod metrics;
pub mod model;
pub mod pass;
pub mod peak;
pub mod recipe;
pub mod report;
pub mod residents;
pub mod run;
pub mod sample;
pub mod saving;
pub mod sharding;
pub mod signals;
pub mod spare;
pub mod state;
pub mod step;
pub mod step_numbers;
pub mod update;

pub use clock::Clock;
pub use device::compute as compute_for;
pub use error::Error;
