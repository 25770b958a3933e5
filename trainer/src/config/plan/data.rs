//! `[data]` as resolved: what to read, in which shares, and how documents become rows.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataPlan {
    /// The training data; in TOML the key `tokens`, `text` or `sources`.
    #[serde(flatten)]
    pub source: DataSource,
    /// The tokenizer: always there for text, and wherever samples are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<Tokenizer>,
    /// The validation data of one source; in TOML the key `validation_fraction` or
    /// `validation_tokens`.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// How documents are laid into rows.
    #[serde(default)]
    pub packing: Packing,
    /// Whether documents of one row do not see each other; always there where the packing minds
    /// documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_documents: Option<bool>,
    /// Later weights of a mixture, in the order of their steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StagePlan>,
}

impl DataPlan {
    /// Whether anything is held out.
    pub fn has_validation(&self) -> bool {
        let held_out = |source: &SourcePlan| source.validation.is_some();
        match &self.source {
            DataSource::Sources(sources) => sources.iter().any(held_out),
            DataSource::Tokens(_) | DataSource::Text(_) => self.validation.is_some(),
        }
    }
}

/// The training data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSource {
    /// A token file or folder.
    Tokens(PathBuf),
    /// A text file, to be tokenized first.
    Text(PathBuf),
    /// Several sources in shares.
    Sources(Vec<SourcePlan>),
}

/// A source of a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourcePlan {
    /// What stages, metrics and reports call it.
    pub name: String,
    /// Its tokens.
    pub tokens: PathBuf,
    /// Its weight until the first stage, in any scale.
    pub weight: f64,
    /// After so many epochs it is used no more; `None` for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_epochs: Option<f64>,
    /// What is held out of it.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
}

/// Weights from a step on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagePlan {
    /// The first step that they hold for, counted from 0; above 0.
    pub from_step: u64,
    /// By name of the source, in any scale; one that is not named is not used.
    pub weights: BTreeMap<String, f64>,
}

/// How documents are laid into rows of `sequence_length + 1` tokens; `grove_data::Packing` says how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Windows of the token sequence, wherever documents begin.
    #[default]
    Contiguous,
    /// The same, cut where documents begin.
    ContiguousByDocument,
    /// Rows begin where documents do, as far as that can be.
    DocumentAligned,
    /// Documents are packed whole, the best fit first.
    BestFit,
}

impl Packing {
    /// Whether it minds where documents begin.
    pub fn minds_documents(self) -> bool {
        self != Self::Contiguous
    }
}

/// How text becomes tokens; in TOML one string.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Tokenizer {
    /// Each byte is a token, 256 in all.
    Bytes,
    /// A `tokenizer.json`.
    File(PathBuf),
}

impl From<String> for Tokenizer {
    fn from(text: String) -> Self {
        if text == "bytes" { Self::Bytes } else { Self::File(text.into()) }
    }
}

impl From<Tokenizer> for String {
    fn from(tokenizer: Tokenizer) -> Self {
        match tokenizer {
            Tokenizer::Bytes => "bytes".to_owned(),
            Tokenizer::File(path) => path.display().to_string(),
        }
    }
}

/// The validation data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Validation {
    /// This part of the training data, kept out of training; above 0, below 1.
    #[serde(rename = "validation_fraction")]
    Fraction(f64),
    /// A token file of its own.
    #[serde(rename = "validation_tokens")]
    Tokens(PathBuf),
}
