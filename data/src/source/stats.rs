//! Numbers about the documents of a source.

use super::Source;
use crate::error::Result;

/// How long the documents of a source are, in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStats {
    /// Tokens.
    pub num_tokens: u64,
    /// Documents.
    pub num_documents: u64,
    /// Tokens of the shortest document.
    pub min_tokens: u64,
    /// Tokens of the longest document.
    pub max_tokens: u64,
    /// Documents of more tokens than the context asked about.
    pub num_longer_than_context: u64,
    /// Entry `i` counts documents of `2^i` to `2^(i + 1) - 1` tokens.
    pub by_length: Vec<u64>,
}

impl Source {
    /// Counts the documents by length; `context` is the number of tokens a row holds. Reads the
    /// whole index of documents.
    ///
    /// # Errors
    /// [`crate::SourceError::NoDocuments`].
    pub fn stats(&self, context: u64) -> Result<SourceStats> {
        let num_documents = self.need_documents("counting documents")?;
        let mut stats = SourceStats {
            num_tokens: self.num_tokens(),
            num_documents,
            min_tokens: u64::MAX,
            max_tokens: 0,
            num_longer_than_context: 0,
            by_length: Vec::new(),
        };
        for document in 0..num_documents {
            let span = self.document(document)?;
            let len = span.end.saturating_sub(span.start);
            stats.min_tokens = stats.min_tokens.min(len);
            stats.max_tokens = stats.max_tokens.max(len);
            stats.num_longer_than_context += u64::from(len > context);
            let class = len.max(1).ilog2() as usize;
            if stats.by_length.len() <= class {
                stats.by_length.resize(class + 1, 0);
            }
            stats.by_length[class] += 1;
        }
        Ok(stats)
    }
}
