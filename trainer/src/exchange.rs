//! Models in and out: Hugging Face folders, GGUF files, and our own checkpoints.
//!
//! A [`Source`] is a model of any of these forms under our names and shapes, which are those of
//! Hugging Face; [`import`] makes a checkpoint of step 0 of it, [`export`] a Hugging Face folder.
//! Values are converted a tensor at a time; nothing that a file says is believed before it was
//! compared with the file's size.

mod convert;
mod error;
mod export;
mod folder;
mod gguf;
mod import;
mod matching;
mod source;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use export::{ExportOptions, export};
pub use gguf::{BlockType, Gguf, GgufTensor, Value};
pub use import::import;
pub use source::Source;
