//! What can be wrong with the data that a kernel is given. Wrong shapes are mistakes of the caller
//! and panic.

/// An index in the data that lies outside of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A target of the cross-entropy is not a token.
    #[error(
        "target {row} is {target}, expected a token id below the vocab_size of {vocab_size} or the \
         ignored {ignored}; check that data and model have the same tokenizer"
    )]
    Target {
        /// Index of the target.
        row: usize,
        /// What it is.
        target: i64,
        /// How many tokens there are.
        vocab_size: usize,
        /// The value that marks targets without a loss.
        ignored: i64,
    },

    /// An input id is not a token.
    #[error(
        "token {row} is {id}, expected an id below the vocab_size of {vocab_size}; check that data \
         and model have the same tokenizer"
    )]
    TokenId {
        /// Index of the token.
        row: usize,
        /// What it is.
        id: i64,
        /// How many tokens there are.
        vocab_size: usize,
    },
}
