//! `grove tokenize`: text to a token file, or files to a folder of shards.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use grove_data::{
    BadRecord, BadUtf8, DocumentOptions, EndOfDocument, InputKind, Manifest, Progress, ScoreFilter,
    TextDocuments, TokenizeOptions, Tokenizer, list_inputs, tokenize_corpus, tokenize_text_file,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::signals::StopRequest;

/// The token that ends documents where the tokenizer has it and nothing else is asked for.
const USUAL_END: &str = "<|endoftext|>";

/// How often the bar is redrawn.
const REDRAW_EVERY: Duration = Duration::from_millis(100);

/// `grove tokenize`.
///
/// One plain text file, and no option but --tokenizer, gives one token file. Everything else gives
/// a folder of shards with an index of documents and a manifest; a job that was interrupted goes on
/// when it is asked for again.
#[derive(Debug, Args)]
pub struct Tokenize {
    /// Files (text, .jsonl, .parquet, each also .gz and .zst), folders and globs; then the token
    /// file or folder to write.
    #[arg(required = true, num_args = 2.., value_name = "INPUT... OUT")]
    paths: Vec<String>,
    /// `bytes`, a `tokenizer.json`, tiktoken ranks, or a folder with a tokenizer.
    #[arg(long, default_value = "bytes")]
    tokenizer: String,
    /// How documents are found.
    #[command(flatten)]
    documents: Documents,
    /// The token after each document: its name, `id:N`, or `none`; by default `<|endoftext|>` where
    /// the tokenizer has it.
    #[arg(long, value_name = "TOKEN")]
    end_of_document: Option<String>,
    /// Leave out documents whose text came before.
    #[arg(long)]
    deduplicate: bool,
    /// A shard ends with the document that brings it to so many tokens.
    #[arg(long, value_name = "TOKENS")]
    shard_tokens: Option<u64>,
    /// Threads; by default one a core. The output does not depend on it.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// How documents are found in files.
#[derive(Debug, Args)]
pub struct Documents {
    /// Where the text is in JSON (`text`, `meta.body`) and Parquet; `text` by default.
    #[arg(long, value_name = "PATH")]
    field: Option<String>,
    /// What a document is in plain text; `file` by default.
    #[arg(long, value_enum, conflicts_with = "separator")]
    document: Option<DocumentOf>,
    /// In plain text, documents stand between occurrences of this.
    #[arg(long, value_name = "TEXT")]
    separator: Option<String>,
    /// What to do with text that is not UTF-8; `fail` by default.
    #[arg(long, value_enum)]
    bad_utf8: Option<OnBadUtf8>,
    /// What to do with broken records; `fail` by default.
    #[arg(long, value_enum)]
    bad_records: Option<OnBadRecord>,
    /// Keep records by the number in this field.
    #[arg(long, value_name = "PATH")]
    score_field: Option<String>,
    /// The least score kept.
    #[arg(long, value_name = "SCORE", requires = "score_field", allow_negative_numbers = true)]
    min_score: Option<f64>,
    /// The largest score kept.
    #[arg(long, value_name = "SCORE", requires = "score_field", allow_negative_numbers = true)]
    max_score: Option<f64>,
}

/// What a document is in plain text.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DocumentOf {
    /// A file.
    File,
    /// A line.
    Line,
}

/// What to do with text that is not UTF-8.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnBadUtf8 {
    /// Bad bytes become U+FFFD.
    Replace,
    /// The document is left out.
    Skip,
    /// The job ends with the place.
    Fail,
}

/// What to do with broken records.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnBadRecord {
    /// They are left out and counted.
    Skip,
    /// The job ends with the place.
    Fail,
}

impl Documents {
    /// As the data room asks for them.
    pub(super) fn options(&self) -> DocumentOptions {
        let text_documents = match (&self.separator, self.document) {
            (Some(separator), _) => TextDocuments::Separated { separator: separator.clone() },
            (None, Some(DocumentOf::Line)) => TextDocuments::Lines,
            (None, Some(DocumentOf::File) | None) => TextDocuments::Files,
        };
        let score = |field: &String| {
            let (field, min, max) = (field.clone(), self.min_score, self.max_score);
            ScoreFilter { field, min, max }
        };
        DocumentOptions {
            text_documents,
            text_field: self.field.clone().unwrap_or_else(|| "text".to_owned()),
            on_bad_utf8: match self.bad_utf8 {
                Some(OnBadUtf8::Replace) => BadUtf8::Replace,
                Some(OnBadUtf8::Skip) => BadUtf8::Skip,
                Some(OnBadUtf8::Fail) | None => BadUtf8::Fail,
            },
            on_bad_record: match self.bad_records {
                Some(OnBadRecord::Skip) => BadRecord::Skip,
                Some(OnBadRecord::Fail) | None => BadRecord::Fail,
            },
            score: self.score_field.as_ref().map(score),
        }
    }

    fn are_default(&self) -> bool {
        let Self { field, document, separator, bad_utf8, bad_records, score_field, .. } = self;
        let words = field.is_none() && separator.is_none() && score_field.is_none();
        words && document.is_none() && bad_utf8.is_none() && bad_records.is_none()
    }
}

impl Tokenize {
    /// Writes the tokens and says what they are.
    ///
    /// # Errors
    /// If an input cannot be read or the tokens not be written.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        let (target, inputs) = self.paths.split_last().expect("there are two paths or more");
        let tokenizer = Tokenizer::from_spec(&self.tokenizer)?;
        let stop = StopRequest::install()?;
        if self.gives_one_file(inputs, target)? {
            let summary = tokenize_text_file(&inputs[0], target, &tokenizer, stop.flag())?;
            let (tokens, bytes) = (summary.num_tokens, summary.num_bytes);
            let per_token = bytes as f64 / tokens as f64;
            writeln!(
                out,
                "{target}: {tokens} tokens of {bytes} bytes, {per_token:.2} bytes a token"
            )?;
            return Ok(());
        }
        let options = self.options(inputs, target, &tokenizer)?;
        let (started, progress) = (Instant::now(), Progress::default());
        let manifest = watched(&progress, |progress| {
            Ok(tokenize_corpus(&options, &tokenizer, progress, stop.flag())?)
        })?;
        say(out, target, &manifest, started.elapsed())
    }

    fn gives_one_file(&self, inputs: &[String], target: &str) -> Result<bool> {
        let is_plain = self.documents.are_default()
            && self.end_of_document.is_none()
            && !self.deduplicate
            && self.shard_tokens.is_none();
        let target = PathBuf::from(target);
        if !is_plain || inputs.len() > 1 || target.is_dir() {
            return Ok(false);
        }
        if PathBuf::from(&inputs[0]).is_dir() {
            return Ok(false);
        }
        // A file that is missing is told by the reader of one file.
        if PathBuf::from(&inputs[0]).symlink_metadata().is_err()
            && !inputs[0].contains(['*', '?', '['])
        {
            return Ok(true);
        }
        if PathBuf::from(&inputs[0]).metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Ok(true);
        }
        let listed = list_inputs(inputs)?;
        let is_compressed = ["gz", "zst"].iter().any(|ending| {
            listed.iter().any(|input| input.path.extension().is_some_and(|found| found == *ending))
        });
        let is_text = listed.len() == 1 && listed[0].kind == InputKind::Text;
        Ok(is_text && !is_compressed)
    }

    fn options(
        &self,
        inputs: &[String],
        target: &str,
        tokenizer: &Tokenizer,
    ) -> Result<TokenizeOptions> {
        const SHARD_TOKENS: u64 = 100_000_000;
        Ok(TokenizeOptions {
            inputs: inputs.to_vec(),
            out: PathBuf::from(target),
            documents: self.documents.options(),
            end_of_document: self.end(tokenizer)?,
            deduplicate: self.deduplicate,
            shard_tokens: self.shard_tokens.unwrap_or(SHARD_TOKENS),
            num_threads: self.threads,
        })
    }

    fn end(&self, tokenizer: &Tokenizer) -> Result<EndOfDocument> {
        Ok(match self.end_of_document.as_deref() {
            None if tokenizer.token_id(USUAL_END).is_some() => {
                EndOfDocument::Token(USUAL_END.to_owned())
            }
            None | Some("none") => EndOfDocument::Absent,
            Some(named) => match named.strip_prefix("id:") {
                None => EndOfDocument::Token(named.to_owned()),
                Some(id) => EndOfDocument::Id(id.parse().map_err(|_| {
                    anyhow::anyhow!("--end-of-document {named}: expected a number after `id:`")
                })?),
            },
        })
    }
}

/// Runs `work` with a bar on stderr, where that is a terminal.
pub(super) fn watched<T>(
    progress: &Progress,
    work: impl FnOnce(&Progress) -> Result<T>,
) -> Result<T> {
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{bar:20} {binary_bytes}/{binary_total_bytes}  {wide_msg}")
            .expect("the template is a constant whose keys indicatif knows"),
    );
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let started = Instant::now();
            while !done.load(Ordering::Acquire) {
                let read = progress.read_bytes.load(Ordering::Relaxed);
                bar.set_length(progress.total_bytes.load(Ordering::Relaxed));
                bar.set_position(read);
                let (documents, tokens) = (
                    progress.num_documents.load(Ordering::Relaxed),
                    progress.num_tokens.load(Ordering::Relaxed),
                );
                let speed = read as f64 / 1e6 / started.elapsed().as_secs_f64().max(1e-3);
                bar.set_message(format!("{documents} documents  {tokens} tokens  {speed:.1} MB/s"));
                std::thread::park_timeout(REDRAW_EVERY);
            }
        });
        let result = work(progress);
        done.store(true, Ordering::Release);
        watcher.thread().unpark();
        result
    });
    bar.finish_and_clear();
    result
}

/// What was written, and what was left out.
fn say(out: &mut dyn Write, target: &str, manifest: &Manifest, took: Duration) -> Result<()> {
    let counts = &manifest.counts;
    let megabytes = counts.num_text_bytes as f64 / 1e6;
    let end = match manifest.tokenizer.end_of_document {
        Some(id) => format!("ended by token {id}"),
        None => "without an end-of-document token".to_owned(),
    };
    writeln!(
        out,
        "{target}: {} tokens of {} documents ({end}) and {} bytes in {} shard(s), {:.2} bytes a \
         token, {:.1} MB/s",
        counts.num_tokens,
        counts.num_documents,
        counts.num_text_bytes,
        manifest.shards.len(),
        counts.num_text_bytes as f64 / counts.num_tokens.max(1) as f64,
        megabytes / took.as_secs_f64().max(1e-3),
    )?;
    let left_out = [
        ("not UTF-8", counts.num_bad_utf8),
        ("broken", counts.num_bad_records),
        ("empty", counts.num_empty),
        ("outside the scores", counts.num_filtered),
        ("duplicates", counts.num_duplicates),
    ];
    for (why, count) in left_out.into_iter().filter(|(_, count)| *count > 0) {
        writeln!(out, "  {count} of {} records left out: {why}", counts.num_records)?;
    }
    if counts.num_replaced_utf8 > 0 {
        let count = counts.num_replaced_utf8;
        writeln!(out, "  {count} documents with bytes that are not UTF-8, replaced by U+FFFD")?;
    }
    for note in &manifest.bad_records {
        writeln!(out, "  {} record {}: {}", note.path.display(), note.number, note.cause)?;
    }
    Ok(())
}
