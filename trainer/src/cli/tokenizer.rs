//! `grove tokenizer`: makes tokenizers.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use grove_data::{Progress, Tokenizer, TrainOptions, train_tokenizer};

use super::tokenize::{Documents, watched};
use crate::signals::StopRequest;

/// `grove tokenizer`.
#[derive(Debug, Subcommand)]
pub enum TokenizerCommand {
    /// Train a byte-level BPE on text and write its tokenizer.json.
    Train(TrainTokenizer),
}

/// `grove tokenizer train`.
#[derive(Debug, Args)]
pub struct TrainTokenizer {
    /// Files, folders and globs, as of `grove tokenize`; then the `tokenizer.json` to write.
    #[arg(required = true, num_args = 2.., value_name = "INPUT... OUT")]
    paths: Vec<String>,
    /// Token ids, the 256 bytes and the special tokens among them.
    #[arg(long)]
    vocab_size: u32,
    /// Pairs seen less often are not merged.
    #[arg(long, default_value_t = 2)]
    min_frequency: u64,
    /// A token that no text gives; may be repeated. They get the lowest ids.
    #[arg(long = "special", value_name = "TOKEN", default_value = "<|endoftext|>")]
    special_tokens: Vec<String>,
    /// How documents are found.
    #[command(flatten)]
    documents: Documents,
}

impl TokenizerCommand {
    /// Carries the command out and says what came of it.
    ///
    /// # Errors
    /// If the text cannot be read or the tokenizer not be written.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        match self {
            Self::Train(command) => command.run(out),
        }
    }
}

impl TrainTokenizer {
    fn run(&self, out: &mut dyn Write) -> Result<()> {
        let (target, inputs) = self.paths.split_last().expect("there are two paths or more");
        let options = TrainOptions {
            inputs: inputs.to_vec(),
            documents: self.documents.options(),
            out: PathBuf::from(target),
            vocab_size: self.vocab_size,
            min_frequency: self.min_frequency,
            special_tokens: self.special_tokens.clone(),
        };
        let stop = StopRequest::install()?;
        watched(&Progress::default(), |progress| {
            Ok(train_tokenizer(&options, progress, stop.flag())?)
        })?;
        let size = Tokenizer::from_spec(target)?.vocab_size();
        writeln!(out, "{target}: {size} tokens")?;
        if size < self.vocab_size {
            let wanted = self.vocab_size;
            writeln!(out, "  fewer than the {wanted} asked for: no pair is frequent enough")?;
        }
        Ok(())
    }
}
