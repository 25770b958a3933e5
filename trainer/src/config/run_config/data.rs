//! `[data]` as written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::config::{Packing, Tokenizer};

/// The whole section.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct DataTable {
    pub(in crate::config) tokens: Option<PathBuf>,
    pub(in crate::config) text: Option<PathBuf>,
    pub(in crate::config) sources: Option<Vec<SourceTable>>,
    pub(in crate::config) stages: Option<Vec<StageTable>>,
    pub(in crate::config) tokenizer: Option<Tokenizer>,
    pub(in crate::config) validation_fraction: Option<f64>,
    pub(in crate::config) validation_tokens: Option<PathBuf>,
    pub(in crate::config) packing: Option<Packing>,
    pub(in crate::config) mask_documents: Option<bool>,
}

/// A table of `data.sources`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct SourceTable {
    pub(in crate::config) name: String,
    pub(in crate::config) tokens: PathBuf,
    pub(in crate::config) weight: Option<f64>,
    pub(in crate::config) max_epochs: Option<f64>,
    pub(in crate::config) validation_fraction: Option<f64>,
    pub(in crate::config) validation_tokens: Option<PathBuf>,
}

/// A table of `data.stages`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct StageTable {
    pub(in crate::config) from_step: Option<u64>,
    pub(in crate::config) from_tokens: Option<u64>,
    pub(in crate::config) weights: BTreeMap<String, f64>,
}
