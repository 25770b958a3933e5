//! CPU kernels over slices: what libtorch does too slowly or in too many passes over memory.
//!
//! No tensors here but in [`view`]; a kernel takes slices and shapes, runs on libtorch's threads
//! through [`pool`], and gives the same bits for any number of them.

pub mod accumulate;
pub mod activation;
pub mod attention;
mod block;
pub mod cross_entropy;
mod dispatch;
pub mod distillation;
pub mod element;
pub mod embedding;
pub mod error;
mod exp;
mod lanes;
pub mod matrix;
pub mod norm;
pub mod pool;
pub mod rope;
#[cfg(test)]
mod testing;
pub(crate) mod view;
