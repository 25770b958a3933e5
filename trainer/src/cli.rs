//! The command line: what `grove` can be asked, and the answers.

mod ckpt;
mod coordinates;
mod data;
mod exchange;
mod grow;
mod replay;
mod shown;
mod tokenize;
mod tokenizer;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use grove_data::{TokenFile, Validation};
use grove_parallel::collective::LocalCollective;
use tch::{Device, Kind};

pub use coordinates::Coordcheck;
pub use data::{At, DataCommand, Seen, Stats};
pub use tokenize::{Documents, Tokenize};
pub use tokenizer::{TokenizerCommand, TrainTokenizer};

use crate::beacon::LastSeen;
use crate::config::{self, Plan};
use crate::eval::{Evaluation, evaluate};
use crate::loaded::LoadedModel;
use crate::model::compute::Compute;
use crate::sample::{Sampling, continue_tokens};
use crate::signals::StopRequest;

pub use ckpt::Ckpt;
pub use exchange::{Export, Import};

/// Distributed pre-training of decoder-only language models.
#[derive(Debug, Parser)]
#[command(version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train what a TOML file says.
    Train(Train),
    /// Print the resolved plan of a TOML file.
    Plan(Configured),
    /// Turn text into a token file, or files into a folder of shards.
    Tokenize(Tokenize),
    /// Make a larger model from a smaller one.
    Grow(grow::Grow),
    /// Make a tokenizer.
    #[command(subcommand)]
    Tokenizer(TokenizerCommand),
    /// Ask what data a run uses when.
    #[command(subcommand)]
    Data(DataCommand),
    /// Continue a prompt with a trained model.
    Sample(Sample),
    /// Mean loss of a trained model on a token file.
    Eval(Eval),
    /// Say what a rank was doing when it was killed.
    Lost(Lost),
    /// Say how large activations become at several widths.
    Coordcheck(Coordcheck),
    /// Do a step that went wrong again, and look for what spoiled it.
    Replay(replay::Replay),
    /// Turn a Hugging Face folder or a GGUF file into a checkpoint.
    Import(Import),
    /// Turn a checkpoint into a Hugging Face folder.
    Export(Export),
    /// Look at checkpoints, compare and prune them.
    #[command(subcommand)]
    Ckpt(Ckpt),
}

/// A config file with overrides.
#[derive(Debug, Args)]
pub struct Configured {
    /// The TOML file.
    pub file: PathBuf,
    /// Override a key, e.g. `--set optim.lr=1e-3`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

impl Configured {
    /// The resolved plan.
    ///
    /// # Errors
    /// All that is wrong with the file or the overrides.
    pub fn plan(&self) -> Result<Plan> {
        Ok(config::load(&self.file, &self.overrides)?)
    }
}

/// `grove train`.
#[derive(Debug, Args)]
pub struct Train {
    /// What to train.
    #[command(flatten)]
    pub configured: Configured,
    /// Continue from the run's newest checkpoint, if it has one.
    #[arg(long)]
    pub resume: bool,
}

impl Train {
    /// The resolved plan.
    ///
    /// # Errors
    /// As [`Configured::plan`].
    pub fn plan(&self) -> Result<Plan> {
        let mut plan = self.configured.plan()?;
        plan.checkpoint.resume |= self.resume;
        Ok(plan)
    }
}

/// `grove lost`.
#[derive(Debug, Args)]
pub struct Lost {
    /// What was trained.
    #[command(flatten)]
    configured: Configured,
    /// The rank.
    #[arg(long)]
    rank: usize,
    /// The signal that ended it, as the launcher named it, such as `9 (Killed)`.
    #[arg(long)]
    signal: Option<String>,
}

/// `grove sample`.
#[derive(Debug, Args)]
pub struct Sample {
    /// A checkpoint, a run's folder (its newest checkpoint), or a Hugging Face folder.
    model: PathBuf,
    /// The text to continue.
    #[arg(long, default_value = "\n")]
    prompt: String,
    /// Tokens to add.
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// Logits are divided by it; 0 takes the most likely token.
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Draw among this many most likely tokens; 0 among all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Keys the random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Another tokenizer than the model's own.
    #[arg(long)]
    tokenizer: Option<String>,
}

/// `grove eval`.
#[derive(Debug, Args)]
pub struct Eval {
    /// A checkpoint, a run's folder (its newest checkpoint), or a Hugging Face folder.
    model: PathBuf,
    /// The token file.
    tokens: PathBuf,
    /// Positions in a sequence; the model's longest by default.
    #[arg(long)]
    sequence_length: Option<usize>,
    /// Sequences computed at once.
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    /// Another tokenizer than the model's own, to count bytes.
    #[arg(long)]
    tokenizer: Option<String>,
}

impl Sample {
    /// Prints the prompt and its continuation.
    ///
    /// # Errors
    /// If the model or its tokenizer cannot be loaded.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        let compute = inference_compute();
        let model = LoadedModel::open(&self.model, &compute)?;
        let tokenizer = model.tokenizer(self.tokenizer.as_deref())?;
        let prompt = tokenizer.encode(&self.prompt)?;
        anyhow::ensure!(!prompt.is_empty(), "--prompt has no tokens; give at least one character");
        let sampling = Sampling {
            num_tokens: self.tokens,
            vocab_size: tokenizer.vocab_size(),
            temperature: self.temperature,
            top_k: self.top_k,
            seed: self.seed,
        };
        let window = model.decoder.spec.max_positions;
        let (alone, stop) = (LocalCollective::new(), StopRequest::install()?);
        let (layers, mut traffic) = (model.layers(&compute), model.traffic(&alone)?);
        let how = (&sampling, &stop);
        let tokens = continue_tokens(layers, &prompt, window, how, &mut traffic)?;
        writeln!(out, "{}", tokenizer.decode(&tokens)?)?;
        Ok(())
    }
}

impl Lost {
    /// Prints one line: rank, host, signal, step, phase and unit.
    ///
    /// # Errors
    /// If the plan cannot be read or the rank has left no word.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        let (dir, rank) = (self.configured.plan()?.run.dir, self.rank);
        let seen = LastSeen::read(&dir, rank)
            .with_context(|| format!("rank {rank} has left no word in {}", dir.display()))?;
        let how = match &self.signal {
            Some(signal) => format!("was killed by signal {signal}"),
            None => "was last seen".to_owned(),
        };
        writeln!(out, "rank {rank} on {} {how} {}", seen.host, seen.describe())?;
        Ok(())
    }
}

impl Eval {
    /// Prints loss, perplexity and bits per byte.
    ///
    /// # Errors
    /// If the model or the tokens cannot be loaded, or do not fit each other.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        let compute = inference_compute();
        let model = LoadedModel::open(&self.model, &compute)?;
        let file = TokenFile::open(&self.tokens)?;
        let (found, expected) = (file.vocab_size() as usize, model.decoder.spec.vocab_size);
        if found > expected {
            let path = self.tokens.clone();
            return Err(crate::Error::Vocabulary { path, expected, found }.into());
        }
        let longest = model.decoder.spec.max_positions;
        let length = self.sequence_length.unwrap_or(longest);
        anyhow::ensure!(
            (1..=longest).contains(&length),
            "--sequence-length {length} is not in 1..={longest}, the model's positions"
        );
        let range = 0..file.num_tokens();
        let windows = Validation::new(file.into(), range, length, self.batch_size)?;
        let alone = LocalCollective::new();
        let (layers, mut traffic) = (model.layers(&compute), model.traffic(&alone)?);
        let evaluation = evaluate(layers, (&windows, 0), &mut traffic, &StopRequest::never())?;
        let Evaluation::Loss(loss) = evaluation else {
            unreachable!("nobody asks this evaluation to stop")
        };
        let num_tokens = windows.num_batches() * (self.batch_size * length) as u64;
        write!(out, "{num_tokens} tokens: loss {loss:.5}, perplexity {:.4}", loss.exp())?;
        match self.bytes_per_token(&model, &windows)? {
            Some(bytes) => {
                writeln!(out, ", bits per byte {:.5}", loss / std::f64::consts::LN_2 / bytes)?;
            }
            None => writeln!(out)?,
        }
        Ok(())
    }

    /// Mean bytes of the text of a target token; `None` if the model's tokenizer is not known.
    fn bytes_per_token(&self, model: &LoadedModel, windows: &Validation) -> Result<Option<f64>> {
        if self.tokenizer.is_none() && model.tokenizer.is_none() {
            return Ok(None);
        }
        let tokenizer = model.tokenizer(self.tokenizer.as_deref())?;
        let (mut bytes, mut tokens) = (0, 0);
        for index in 0..windows.num_batches() {
            let batch = windows.batch(index)?;
            for row in batch.tokens.chunks(batch.sequence_length + 1) {
                bytes += tokenizer.num_bytes(&row[1..])?;
                tokens += row.len() - 1;
            }
        }
        Ok(Some(bytes as f64 / tokens as f64))
    }
}

/// One process on the CPU in f32, on all its cores: for commands that only run a model.
fn inference_compute() -> Compute {
    let num_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tch::set_num_threads(num_threads as i32);
    Compute::new(Device::Cpu, Kind::Float, num_threads)
}
