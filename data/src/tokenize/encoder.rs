//! Encoding on one thread, with what is worth keeping from one text to the next.

use super::fast::WordCache;
use super::{Kind, Tokenizer};
use crate::error::Result;

/// A tokenizer at work on one thread.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    cache: WordCache,
}

impl<'a> Encoder<'a> {
    /// An encoder with a cache of words, 2 MiB where the tokenizer can use one.
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        let cache = match &tokenizer.kind {
            Kind::Subword(subword) if subword.fast.is_some() => WordCache::new(),
            Kind::Ranks(_) => WordCache::new(),
            Kind::Bytes | Kind::Subword(_) => WordCache::default(),
        };
        Self { tokenizer, cache }
    }

    /// An encoder that costs nothing to make.
    pub(crate) fn for_little_text(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, cache: WordCache::default() }
    }

    /// Appends the ids of a text.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`] if a Hugging Face tokenizer fails.
    pub(crate) fn encode(&mut self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        match &self.tokenizer.kind {
            Kind::Bytes => ids.extend(text.bytes().map(u32::from)),
            Kind::Subword(subword) => {
                let fast = subword.fast.as_ref();
                if !fast.is_some_and(|fast| fast.encode(text, &mut self.cache, ids)) {
                    let encoding = subword.inner.encode_fast(text, false);
                    let encoding = encoding.map_err(|cause| self.tokenizer.failed(cause))?;
                    ids.extend_from_slice(encoding.get_ids());
                }
            }
            Kind::Ranks(tokenizer) => {
                let is_done = tokenizer.ranks.bpe.encode(text, &mut self.cache, ids);
                debug_assert!(is_done, "ranks have neither added tokens nor normalization");
            }
        }
        Ok(())
    }

    /// Appends the ids of bytes, which must be UTF-8 unless the tokenizer is that of bytes.
    ///
    /// # Errors
    /// As [`Encoder::encode`]; the offset of the first bad byte in the inner result.
    pub(crate) fn encode_bytes(
        &mut self,
        bytes: &[u8],
        ids: &mut Vec<u32>,
    ) -> Result<std::result::Result<(), usize>> {
        if self.tokenizer.takes_any_bytes() {
            ids.extend(bytes.iter().copied().map(u32::from));
            return Ok(Ok(()));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => self.encode(text, ids).map(Ok),
            Err(bad) => Ok(Err(bad.valid_up_to())),
        }
    }
}
