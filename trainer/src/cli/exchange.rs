//! `grove import` and `grove export`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use super::shown::bytes;
use crate::checkpoint::Dtype;
use crate::exchange::{ExportOptions, Source, export, import};
use crate::model::config::Precision;

/// `grove import`.
#[derive(Debug, Args)]
pub struct Import {
    /// A Hugging Face folder of a Llama or GPT-2, or a GGUF file of the Llama family.
    source: PathBuf,
    /// The checkpoint to write: a new folder, of step 0, in fp32, without optimizer state.
    out: PathBuf,
}

/// `grove export`.
#[derive(Debug, Args)]
pub struct Export {
    /// A checkpoint, a run's folder (its newest checkpoint), or what `import` takes.
    source: PathBuf,
    /// The Hugging Face folder to write, a new one.
    out: PathBuf,
    /// The type of the weights.
    #[arg(long, default_value = "bf16")]
    dtype: ExportDtype,
    /// The most bytes of one file of weights.
    #[arg(long, default_value_t = 5_000_000_000)]
    max_shard_bytes: u64,
}

/// The types that weights can be exported in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExportDtype {
    /// bfloat16, rounded from the masters.
    Bf16,
    /// The masters.
    Fp32,
}

impl Import {
    /// Writes the checkpoint and says what it holds.
    ///
    /// # Errors
    /// If the source cannot be read or the checkpoint not be written.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        let source = Source::open(&self.source)?;
        import(&source, &self.out)?;
        say(&source, &self.out, Dtype::F32, out)
    }
}

impl Export {
    /// Writes the folder and says what it holds.
    ///
    /// # Errors
    /// If the source cannot be read or the folder not be written.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        ensure!(self.max_shard_bytes > 0, "--max-shard-bytes 0 leaves no room; use 1 or more");
        let source = Source::open(&self.source)?;
        let (dtype, stored) = match self.dtype {
            ExportDtype::Bf16 => (Precision::Bf16, Dtype::Bf16),
            ExportDtype::Fp32 => (Precision::Fp32, Dtype::F32),
        };
        let max_shard_bytes = self.max_shard_bytes;
        export(&source, &self.out, ExportOptions { dtype, max_shard_bytes })?;
        say(&source, &self.out, stored, out)
    }
}

fn say(source: &Source, path: &std::path::Path, dtype: Dtype, out: &mut dyn Write) -> Result<()> {
    let params = source.config.spec().num_parameters();
    let size = bytes(params * dtype.size_bytes() as u64);
    let (family, path, dtype) = (source.config.model_type(), path.display(), dtype.name());
    writeln!(out, "{path}: {family}, {params} parameters in {dtype}, {size}")?;
    for note in &source.notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}
