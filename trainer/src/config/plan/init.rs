//! What weights start from: `[init]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[init]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitPlan {
    /// The model whose weights the run starts from; drawn at random if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
}
