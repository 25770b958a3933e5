#![doc = include_str!("../README.md")]

mod batch;
mod dataset;
mod error;
mod input;
mod loader;
mod mapped;
mod mixture;
mod order;
mod packing;
mod prefetch;
mod publication;
mod receipt;
mod source;
mod split;
mod token_file;
mod tokenize;
mod tokenize_corpus;
mod tokenize_file;
mod validation;

pub use batch::Batch;
pub use dataset::{BadRecordNote, Counts, Manifest, ShardRecord, TokenizerRecord};
pub use error::{Error, InputError, MixtureError, Result, SourceError};
pub use input::{InputFile, InputKind, list_inputs};
pub use loader::{Loader, LoaderConfig};
pub use mixture::{Mixture, MixtureSource, SourceReport, Stage, with_weights_from};
pub use order::{Order, Permutation};
pub use packing::Packing;
pub use prefetch::Prefetcher;
pub use receipt::{PieceReceipt, RowReceipt, Sighting};
pub use source::{FlatFile, Format, Origin, Place, Shards, Source, SourceOptions, SourceStats};
pub use split::{Corpus, Part, Split};
pub use token_file::{TokenDtype, TokenFile, TokenWriter};
pub use tokenize::{Tokenizer, TrainOptions, train_tokenizer};
pub use tokenize_corpus::{
    BadRecord, BadUtf8, DocumentOptions, EndOfDocument, Progress, ScoreFilter, TextDocuments,
    TokenizeOptions, tokenize_corpus,
};
pub use tokenize_file::{Summary, tokenize_text_file};
pub use validation::Validation;
