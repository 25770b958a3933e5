#![doc = include_str!("../README.md")]

mod error;
mod loader;
mod order;
mod prefetch;
mod split;
mod token_file;
mod tokenize;
mod tokenize_file;
mod validation;

pub use error::{Error, Result};
pub use loader::{Batch, Loader, LoaderConfig};
pub use order::{Order, Permutation};
pub use prefetch::Prefetcher;
pub use split::{Corpus, Part, Split};
pub use token_file::{TokenDtype, TokenFile, TokenWriter};
pub use tokenize::Tokenizer;
pub use tokenize_file::{Summary, tokenize_text_file};
pub use validation::Validation;
