//! Speed of tokenizing a corpus and of reading batches.
//!
//! Usage: `data_speed TOKENIZER OUT INPUT...`; OUT is a folder that does not exist yet.
//! Example: `cargo run --release -p grove-data --example data_speed -- gpt2 out enwik8`

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use grove_data::{
    BadRecord, BadUtf8, Corpus, DocumentOptions, EndOfDocument, Loader, LoaderConfig, Mixture,
    MixtureSource, Packing, Progress, Source, Stage, TextDocuments, TokenizeOptions, Tokenizer,
    tokenize_corpus,
};

/// Batches assembled for each figure.
const NUM_STEPS: u64 = 2000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let [Some(spec), Some(out)] = [arguments.next(), arguments.next()] else {
        return Err("usage: data_speed TOKENIZER OUT INPUT...".into());
    };
    let mut stdout = std::io::stdout();
    let options = TokenizeOptions {
        inputs: arguments.collect(),
        out: PathBuf::from(out),
        documents: DocumentOptions {
            text_documents: TextDocuments::Files,
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
    writeln!(stdout, "{tokens} tokens in {seconds:.2} s, {:.1} MB/s", bytes / seconds / 1e6)?;
    let source = Source::open(&options.out)?;
    for packing in [Packing::Contiguous, Packing::ContiguousByDocument, Packing::BestFit] {
        let speed = read_speed(&source, packing)?;
        writeln!(stdout, "{packing:?}: {:.0} M tokens/s read", speed / 1e6)?;
    }
    Ok(())
}

/// Tokens a second of assembled batches, on one core.
fn read_speed(source: &Source, packing: Packing) -> Result<f64, Box<dyn std::error::Error>> {
    let config = LoaderConfig {
        sequence_length: 1024,
        micro_batch_size: 16,
        micro_batches_per_step: 1,
        seed: 1,
    };
    let corpus = Corpus::from_one_file(source.clone(), 0.0)?;
    let sources = vec![MixtureSource { name: "a".to_owned(), corpus, max_epochs: None }];
    let stages = [Stage { first_step: 0, weights: [("a".to_owned(), 1.0)].into() }];
    let mixture = Arc::new(Mixture::new(sources, &stages, &config)?);
    let loader = Loader::of_mixture(mixture, packing, config)?;
    let mut num_tokens = 0;
    // The first pass warms the page cache.
    for step in 0..NUM_STEPS {
        loader.micro_batch(step, 0)?;
    }
    let start = Instant::now();
    for step in 0..NUM_STEPS {
        num_tokens += loader.micro_batch(step, 0)?.tokens.len();
    }
    Ok(num_tokens as f64 / start.elapsed().as_secs_f64())
}
