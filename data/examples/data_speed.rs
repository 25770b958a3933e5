//! Speed of tokenizing a corpus, of reading batches in each packing, and of opening a huge file.
//!
//! Usage: `data_speed TOKENIZER OUT INPUT...`; OUT is a folder that does not exist yet. Documents in
//! plain text are cut at blank lines, so that there are many of them.
//! Example: `cargo run --release -p grove-data --example data_speed -- gpt2 out enwik8`

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use grove_data::{
    BadRecord, BadUtf8, Corpus, DocumentOptions, EndOfDocument, Format, Loader, LoaderConfig,
    Mixture, Packing, Progress, Source, SourceOptions, TextDocuments, TokenizeOptions, Tokenizer,
    tokenize_corpus,
};

/// Batches assembled for each figure.
const NUM_STEPS: u64 = 1000;

/// Tokens of the file that is opened: more than fit into memory.
const HUGE_TOKENS: u64 = 100_000_000_000;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let [Some(spec), Some(out)] = [arguments.next(), arguments.next()] else {
        return Err("usage: data_speed TOKENIZER OUT INPUT...".into());
    };
    let mut stdout = std::io::stdout();
    let options = TokenizeOptions {
        inputs: arguments.collect(),
        out: PathBuf::from(out),
        documents: DocumentOptions {
            text_documents: TextDocuments::Separated { separator: "\n\n".to_owned() },
            text_field: "text".to_owned(),
            on_bad_utf8: BadUtf8::Fail,
            on_bad_record: BadRecord::Fail,
            score: None,
        },
        end_of_document: EndOfDocument::Absent,
        deduplicate: false,
        shard_tokens: 100_000_000,
        num_threads: 0,
    };
    let start = Instant::now();
    let tokenizer = Tokenizer::from_spec(&spec)?;
    writeln!(stdout, "tokenizer loaded in {:.2} s", start.elapsed().as_secs_f64())?;
    let start = Instant::now();
    let stop = AtomicBool::new(false);
    let counts = tokenize_corpus(&options, &tokenizer, &Progress::default(), &stop)?.counts;
    let seconds = start.elapsed().as_secs_f64();
    let (tokens, bytes) = (counts.num_tokens, counts.num_text_bytes as f64);
    let documents = counts.num_documents;
    writeln!(
        stdout,
        "{tokens} tokens of {documents} documents in {seconds:.2} s, {:.1} MB/s",
        bytes / seconds / 1e6
    )?;
    let source = Source::open(&options.out)?;
    let packings = [
        Packing::Contiguous,
        Packing::ContiguousByDocument,
        Packing::DocumentAligned,
        Packing::BestFit,
    ];
    for packing in packings {
        let (speed, filled) = read_speed(&source, packing)?;
        writeln!(
            stdout,
            "{packing:?}: {:.0} M tokens/s a core, {:.1} % of them targets",
            speed / 1e6,
            100.0 * filled
        )?;
    }
    let milliseconds = 1e3 * huge_start(&options.out)?;
    writeln!(stdout, "first batch of {HUGE_TOKENS} tokens after {milliseconds:.2} ms")?;
    Ok(())
}

fn config() -> LoaderConfig {
    LoaderConfig { sequence_length: 1024, micro_batch_size: 16, micro_batches_per_step: 1, seed: 1 }
}

fn loader(source: Source, packing: Packing) -> Outcome<Loader> {
    let mixture = Mixture::of_one(Corpus::from_one_file(source, 0.0)?, &config())?;
    Ok(Loader::of_mixture(Arc::new(mixture), packing, config())?)
}

/// Tokens a second of assembled batches, on one core, and the part of them that are targets.
fn read_speed(source: &Source, packing: Packing) -> Outcome<(f64, f64)> {
    let loader = loader(source.clone(), packing)?;
    let (mut num_tokens, mut num_targets) = (0, 0);
    // The first pass warms the page cache.
    for step in 0..NUM_STEPS {
        num_targets += loader.micro_batch(step, 0)?.num_targets();
    }
    let start = Instant::now();
    for step in 0..NUM_STEPS {
        num_tokens += loader.micro_batch(step, 0)?.tokens.len();
    }
    let speed = num_tokens as f64 / start.elapsed().as_secs_f64();
    Ok((speed, num_targets as f64 / num_tokens as f64))
}

/// Seconds from opening a sparse file of 100 billion tokens to the first batch.
fn huge_start(folder: &Path) -> Outcome<f64> {
    let path = folder.join("huge.bin");
    let mut file = std::fs::File::create(&path)?;
    file.seek(SeekFrom::Start(2 * HUGE_TOKENS - 1))?;
    file.write_all(&[0])?;
    let start = Instant::now();
    let options = SourceOptions { format: Some(Format::NanoGpt), vocab_size: Some(50_257) };
    let source = Source::open_with(&path, &options)?;
    loader(source, Packing::Contiguous)?.micro_batch(12_345, 0)?;
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(seconds)
}
