//! Decoder-only models: their shapes, parameters and layers, forward and backward.
//!
//! There is no autograd graph in training, but for one exception: on CUDA, attention alone goes
//! through libtorch's own graph for now. Each layer is a pair of functions, forward and backward,
//! that take weights as arguments and add weight gradients where the caller keeps them;
//! `crate::pass` calls them in order. So a unit's buffers may come and go between its forward and
//! its backward, gradients never exist twice, and what is kept or computed again is explicit.
//! [`plain`] is the same model in ordinary autograd operations.

pub mod activation;
pub mod attention;
pub mod block;
pub mod branch;
pub mod compute;
pub mod config;
pub mod decoder;
mod draw;
pub mod embedding;
pub mod facts;
pub mod folding;
pub mod fp8;
pub mod head;
pub mod init;
pub mod lesson;
mod linear;
pub mod norm;
pub mod plain;
mod product;
pub mod ramp;
pub mod residual;
pub mod rope_scaling;
pub mod rotary;
pub mod scaling;
pub mod segments;
pub mod units;
pub mod views;
pub mod work;
