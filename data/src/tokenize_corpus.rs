//! Text in files to a folder of shards: on all cores, in bounded memory, going on where it was
//! interrupted.
//!
//! One thread reads and cuts whole records off ([`reader`]), all cores parse and encode
//! ([`worker`]), and the calling thread writes in the order of reading ([`shards`]), so that the
//! output does not depend on the number of threads. [`pipeline`] connects the three.

mod options;
mod pipeline;
mod reader;
mod shards;
#[cfg(test)]
mod tests;
mod worker;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use options::{
    BadRecord, BadUtf8, DocumentOptions, EndOfDocument, ScoreFilter, TextDocuments, TokenizeOptions,
};
pub(crate) use pipeline::{Pipeline, Sizes};
pub(crate) use worker::Outcome;

use crate::dataset::{
    Counts, Job, MANIFEST_NAME, Manifest, Position, ShardRecord, TokenizerRecord, read_json,
    sha256_of, write_json,
};
use crate::error::{Error, InputError, Result, SourceError};
use crate::input::listing::sample;
use crate::input::{InputFile, InputKind, list_inputs};
use crate::tokenize::Tokenizer;
use shards::{ShardWriter, shard_names};

const JOB_NAME: &str = "job.json";

/// How far a job is, for whoever watches: numbers that only grow.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the inputs, compressed as they may be; 0 until they are listed.
    pub total_bytes: AtomicU64,
    /// Bytes read of them.
    pub read_bytes: AtomicU64,
    /// Documents written.
    pub num_documents: AtomicU64,
    /// Tokens written.
    pub num_tokens: AtomicU64,
    /// Shards finished.
    pub num_shards: AtomicU64,
}

/// Tokenizes files into the folder `options.out`: `shard-00000.tokens`, its document index
/// `shard-00000.documents`, and so on, and at last `manifest.json`.
///
/// The same inputs, options and tokenizer give the same bytes, on any number of threads and with
/// any interruptions. When `stop` is set, what is finished stays, and the same call later goes on
/// behind the last whole shard; a call for a finished job returns its manifest.
///
/// Memory: some 8 MiB of text and its ids for each thread, and the longest document (all of it,
/// for tokenizers whose text cannot be cut); with `deduplicate` about 24 bytes for each document.
///
/// # Errors
/// [`InputError`] in its variants for inputs and options, for a folder that holds another job
/// ([`InputError::OtherJob`]) and for inputs that are not what they were when the job was begun
/// ([`InputError::InputChanged`]); [`SourceError::Damaged`] if a finished shard is not whole;
/// [`InputError::Paused`] soon after `stop` is set; [`Error::DiskFull`]; those of the tokenizer.
pub fn tokenize_corpus(
    options: &TokenizeOptions,
    tokenizer: &Tokenizer,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<Manifest> {
    let out = options.out.as_path();
    let job = Job {
        tokenizer: options.tokenizer_record(tokenizer)?,
        options: options.in_words(),
        inputs: listed(options, out)?,
    };
    options.check(&job.inputs)?;
    let total: u64 = job.inputs.iter().map(|input| input.num_bytes).sum();
    progress.total_bytes.store(total, Ordering::Relaxed);
    begin(&job, out)?;
    if out.join(MANIFEST_NAME).exists() {
        let manifest = Manifest::read(out)?;
        progress.read_bytes.store(total, Ordering::Relaxed);
        show(&manifest.counts, manifest.shards.len(), progress);
        return Ok(manifest);
    }
    let finished = finished_shards(out)?;
    let start = finished.last().map_or(Position::default(), |shard| shard.next);
    let mut writer = ShardWriter::resume(options, &job.tokenizer, finished)?;
    let before: u64 = job.inputs[..start.input].iter().map(|input| input.num_bytes).sum();
    progress.read_bytes.store(before, Ordering::Relaxed);
    let pipeline = Pipeline {
        inputs: &job.inputs,
        documents: &options.documents,
        tokenizer,
        needs_hash_first: options.deduplicate,
        scratch: out,
        sizes: Sizes::new(options.num_threads),
    };
    pipeline.run(start, &progress.read_bytes, &mut |encoded| {
        if stop.load(Ordering::Relaxed) {
            let num_shards = writer.num_shards();
            return Err(InputError::Paused { path: out.to_owned(), num_shards }.into());
        }
        writer.take(&encoded, &job.inputs)?;
        show(&writer.counts(), writer.num_shards() as usize, progress);
        Ok(())
    })?;
    let (shards, counts, bad_records) = writer.finish(job.inputs.len())?;
    let (tokenizer, options, inputs) = (job.tokenizer, job.options, job.inputs);
    let manifest = Manifest { version: 1, tokenizer, options, inputs, shards, counts, bad_records };
    write_json(&out.join(MANIFEST_NAME), &manifest)?;
    show(&manifest.counts, manifest.shards.len(), progress);
    Ok(manifest)
}

/// Calls `sink` with the texts of all documents in order, long plain files in parts.
///
/// # Errors
/// Those of [`tokenize_corpus`] for inputs and options, and what `sink` returns.
pub(crate) fn for_each_text(
    inputs: &[String],
    documents: &DocumentOptions,
    (scratch, progress): (&Path, &Progress),
    sink: &mut dyn FnMut(String) -> Result<()>,
) -> Result<()> {
    let inputs = list_inputs(inputs)?;
    documents.check(&inputs)?;
    let total = inputs.iter().map(|input| input.num_bytes).sum();
    progress.total_bytes.store(total, Ordering::Relaxed);
    // The ids of bytes are the bytes: what the pipeline encodes can be turned back.
    let tokenizer = Tokenizer::bytes();
    let pipeline = Pipeline {
        inputs: &inputs,
        documents,
        tokenizer: &tokenizer,
        needs_hash_first: false,
        scratch,
        sizes: Sizes { at_line_ends: true, ..Sizes::new(1) },
    };
    pipeline.run(Position::default(), &progress.read_bytes, &mut |encoded| {
        let mut start = 0;
        for fate in &encoded.fates {
            let (Outcome::Part { num_ids, .. } | Outcome::Document { num_ids, .. }) = fate.outcome
            else {
                continue;
            };
            let bytes = encoded.ids[start..start + num_ids].iter().map(|&id| id as u8).collect();
            start += num_ids;
            let text = match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(bad) if documents.on_bad_utf8 == BadUtf8::Replace => {
                    String::from_utf8_lossy(bad.as_bytes()).into_owned()
                }
                Err(_) if documents.on_bad_utf8 == BadUtf8::Skip => continue,
                Err(bad) => {
                    let path = inputs[encoded.input].path.display();
                    let origin = format!("document {} of `{path}`", fate.record + 1);
                    let byte = bad.utf8_error().valid_up_to() as u64;
                    return Err(Error::NotUtf8 { origin, byte });
                }
            };
            progress.num_documents.fetch_add(1, Ordering::Relaxed);
            sink(text)?;
        }
        Ok(())
    })
}

/// The inputs as they are now. Where they cannot be listed, because one is gone, the job begun in
/// the folder says what it was.
fn listed(options: &TokenizeOptions, out: &Path) -> Result<Vec<InputFile>> {
    let job_path = out.join(JOB_NAME);
    let begun =
        if has_output(out) { Some(read_json::<Job>(&job_path, "open the job")?) } else { None };
    for input in begun.iter().flat_map(|job| &job.inputs) {
        let now = sample(&input.path);
        let in_words = |(num_bytes, fingerprint): (u64, u64)| {
            format!("{num_bytes} bytes with fingerprint {fingerprint:016x}")
        };
        let (expected, found) = ((input.num_bytes, input.fingerprint), now.as_ref().ok());
        if found != Some(&expected) {
            return Err(InputError::InputChanged {
                path: input.path.clone(),
                out: out.to_owned(),
                expected: in_words(expected),
                found: now.map_or_else(|_| "missing".to_owned(), in_words),
            }
            .into());
        }
    }
    list_inputs(&options.inputs)
}

/// Whether a job in the folder finished something. One that did not may be begun anew, with other
/// options.
fn has_output(out: &Path) -> bool {
    let [_, _, first] = shard_names(0);
    out.join(JOB_NAME).exists() && out.join(first).exists()
}

/// Records the job in its folder, or compares it with the one that was begun there.
fn begin(job: &Job, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).map_err(Error::io("create the folder", out))?;
    let path = out.join(JOB_NAME);
    if !has_output(out) {
        return write_json(&path, job);
    }
    let begun: Job = read_json(&path, "open the job")?;
    let paths = |job: &Job| {
        let paths: Vec<String> =
            job.inputs.iter().map(|input| input.path.display().to_string()).collect();
        format!("{} files: {}", paths.len(), paths.join(", "))
    };
    let tokenizer = |job: &Job| {
        let TokenizerRecord { description, fingerprint, .. } = &job.tokenizer;
        format!("{description}, fingerprint {fingerprint}")
    };
    let differences = [
        // The description holds a path, which may change.
        ("tokenizer", begun.tokenizer.fingerprint != job.tokenizer.fingerprint, {
            (tokenizer(&begun), tokenizer(job))
        }),
        (
            "end-of-document token",
            { begun.tokenizer.end_of_document != job.tokenizer.end_of_document },
            {
                let token = |job: &Job| format!("{:?}", job.tokenizer.end_of_document);
                (token(&begun), token(job))
            },
        ),
        ("set of options", begun.options != job.options, {
            (begun.options.clone(), job.options.clone())
        }),
        ("list of inputs", begun.inputs != job.inputs, (paths(&begun), paths(job))),
    ];
    for (what, differs, (found, expected)) in differences {
        if differs {
            let path = out.to_owned();
            return Err(InputError::OtherJob { path, what, found, expected }.into());
        }
    }
    Ok(())
}

/// The shards that were finished by earlier calls, each checked by its hashes.
fn finished_shards(out: &Path) -> Result<Vec<ShardRecord>> {
    let mut shards = Vec::new();
    loop {
        let [tokens, documents, record] = shard_names(shards.len()).map(|name| out.join(name));
        if !record.exists() {
            return Ok(shards);
        }
        let shard: ShardRecord = read_json(&record, "open the record of a shard")?;
        for (path, expected) in
            [(tokens, &shard.tokens_sha256), (documents, &shard.documents_sha256)]
        {
            let found = sha256_of(&path)?;
            if found != *expected {
                let cause = format!("its SHA-256 is {found}, in its record {expected}");
                return Err(SourceError::Damaged { path, cause }.into());
            }
        }
        shards.push(shard);
    }
}

fn show(counts: &Counts, num_shards: usize, progress: &Progress) {
    progress.num_documents.store(counts.num_documents, Ordering::Relaxed);
    progress.num_tokens.store(counts.num_tokens, Ordering::Relaxed);
    progress.num_shards.store(num_shards as u64, Ordering::Relaxed);
}

impl DocumentOptions {
    /// Refuses options that cannot apply to these inputs.
    fn check(&self, inputs: &[InputFile]) -> Result<()> {
        if let TextDocuments::Separated { separator } = &self.text_documents
            && separator.is_empty()
        {
            return Err(InputError::Option {
                key: "separator",
                found: "empty".to_owned(),
                expected: "at least one character",
            }
            .into());
        }
        let plain = inputs.iter().find(|input| input.kind == InputKind::Text);
        if let (Some(score), Some(plain)) = (&self.score, plain) {
            return Err(InputError::Option {
                key: "score",
                found: format!("`{}`, with plain text in `{}`", score.field, plain.path.display()),
                expected: "to be left out where an input has no fields",
            }
            .into());
        }
        Ok(())
    }
}
