//! Which tokens are for training and which for validation.

#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::error::{Error, Result};
use crate::source::Source;

/// One of the two uses of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Tokens the model learns from.
    Train,
    /// Tokens the model is only measured on.
    Validation,
}

/// A range of tokens of one source.
#[derive(Clone, Debug)]
pub struct Part {
    /// The token file, folder of shards, or foreign file.
    pub file: Source,
    /// Its tokens that belong to this part.
    pub range: Range<u64>,
}

/// Training and validation data, from one file or two.
#[derive(Clone, Debug)]
pub struct Corpus {
    train: Part,
    validation: Part,
}

impl Corpus {
    /// Splits one file: the last `floor(validation_fraction * num_tokens)` tokens are for
    /// validation. With 0.1 of 1,000,005 tokens these are tokens 900,005 to 1,000,004.
    ///
    /// # Errors
    /// [`Error::ValidationFraction`] unless `0 <= validation_fraction < 1`.
    pub fn from_one_file(file: impl Into<Source>, validation_fraction: f64) -> Result<Self> {
        let file = file.into();
        if !(0.0..1.0).contains(&validation_fraction) {
            return Err(Error::ValidationFraction { found: validation_fraction });
        }
        let num_tokens = file.num_tokens();
        // Exact up to 2^53 tokens, and the same on every machine beyond.
        let num_validation_tokens = (num_tokens as f64 * validation_fraction).floor() as u64;
        let border = num_tokens - num_validation_tokens;
        Ok(Self {
            train: Part { file: file.clone(), range: 0..border },
            validation: Part { file, range: border..num_tokens },
        })
    }

    /// Takes all of one file for training and all of another for validation.
    ///
    /// # Errors
    /// [`Error::VocabMismatch`] if their vocabulary sizes differ.
    pub fn from_two_files(train: impl Into<Source>, validation: impl Into<Source>) -> Result<Self> {
        let (train, validation) = (train.into(), validation.into());
        if train.vocab_size() != validation.vocab_size() {
            return Err(Error::VocabMismatch {
                train: train.path().to_owned(),
                train_vocab_size: train.vocab_size(),
                validation: validation.path().to_owned(),
                validation_vocab_size: validation.vocab_size(),
            });
        }
        let whole = |file: Source| Part { range: 0..file.num_tokens(), file };
        Ok(Self { train: whole(train), validation: whole(validation) })
    }

    /// Training data alone.
    pub(crate) fn train_only(file: Source, range: Range<u64>) -> Self {
        let validation = Part { file: file.clone(), range: range.end..range.end };
        Self { train: Part { file, range }, validation }
    }

    /// The file and range of one split.
    pub fn part(&self, split: Split) -> &Part {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
        }
    }
}

/// Checks that a range lies in a file.
pub(crate) fn check_range(file: &Source, range: &Range<u64>) -> Result<()> {
    if range.start <= range.end && range.end <= file.num_tokens() {
        return Ok(());
    }
    let (path, num_tokens) = (file.path().to_owned(), file.num_tokens());
    Err(Error::OutsideFile { path, start: range.start, end: range.end, num_tokens })
}
