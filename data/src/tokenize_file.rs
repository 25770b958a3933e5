//! One text file to one token file.

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::dataset::Position;
use crate::error::{Error, Result};
use crate::input::InputFile;
use crate::publication::folder_of;
use crate::token_file::TokenWriter;
use crate::tokenize::Tokenizer;
use crate::tokenize_corpus::{
    BadRecord, BadUtf8, DocumentOptions, Outcome, Pipeline, Sizes, TextDocuments,
};

/// What came of tokenizing a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of text read.
    pub num_bytes: u64,
    /// Tokens written.
    pub num_tokens: u64,
    /// Every id is below this.
    pub vocab_size: u32,
    /// [`TokenFile::fingerprint`](crate::TokenFile::fingerprint) of the file written.
    pub fingerprint: u64,
}

/// Encodes the file at `text_path` and publishes a token file at `out_path`.
///
/// The ids are those of the whole text encoded at once, in order, whatever the number of cores.
/// Bytes, tiktoken ranks, GPT-2 style tokenizers and `tokenizer.json` files that split words like
/// GPT-2, Llama 3 or Qwen 2 do are encoded in parts of some 1 MiB, cut between an ASCII letter or
/// digit and a line feed; for others the whole text and its encoding are held in memory.
///
/// # Errors
/// [`Error::Io`] if the text cannot be read, [`Error::NotUtf8`] with the byte offset in the file,
/// [`Error::NoTokens`] if it is empty, [`Error::DiskFull`], and those of [`Tokenizer::encode`].
/// [`Error::Interrupted`] soon after `stop` is set. On an error nothing appears at `out_path`.
pub fn tokenize_text_file(
    text_path: impl AsRef<Path>,
    out_path: impl AsRef<Path>,
    tokenizer: &Tokenizer,
    stop: &AtomicBool,
) -> Result<Summary> {
    let out_path = out_path.as_ref();
    let mut writer = TokenWriter::create(out_path, tokenizer.vocab_size())?;
    let (scratch, sizes) = (folder_of(out_path), Sizes::new(0));
    let num_bytes = encode_file(text_path.as_ref(), tokenizer, (scratch, sizes), &mut |ids| {
        if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { writer.write(ids) }
    })?;
    let num_tokens = writer.num_tokens();
    let fingerprint = writer.finish()?;
    Ok(Summary { num_bytes, num_tokens, vocab_size: tokenizer.vocab_size(), fingerprint })
}

/// Gives `sink` the ids of a file in order; returns its size in bytes.
fn encode_file(
    text_path: &Path,
    tokenizer: &Tokenizer,
    (scratch, sizes): (&Path, Sizes),
    sink: &mut dyn FnMut(&[u32]) -> Result<()>,
) -> Result<u64> {
    let input = InputFile::plain(text_path, "open the text file")?;
    let documents = DocumentOptions {
        text_documents: TextDocuments::Files,
        text_field: String::new(),
        on_bad_utf8: BadUtf8::Fail,
        on_bad_record: BadRecord::Fail,
        score: None,
    };
    let pipeline = Pipeline {
        inputs: &[input],
        documents: &documents,
        tokenizer,
        needs_hash_first: false,
        scratch,
        sizes,
    };
    let mut total_bytes = 0;
    pipeline.run(Position::default(), &AtomicU64::new(0), &mut |encoded| {
        for fate in &encoded.fates {
            if let Outcome::Part { num_bytes, .. } | Outcome::Document { num_bytes, .. } =
                fate.outcome
            {
                total_bytes += num_bytes;
            }
        }
        sink(&encoded.ids)
    })?;
    Ok(total_bytes)
}
