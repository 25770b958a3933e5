//! `grove coordcheck`: a table of the coordinate check.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use tch::{Device, Kind};

use crate::config;
use crate::coordinates::coordinates;
use crate::model::compute::Compute;
use crate::model::config::{LlamaConfig, ModelConfig, Precision};

/// `grove coordcheck`.
#[derive(Debug, Args)]
pub struct Coordcheck {
    /// The TOML file, of a Llama.
    file: PathBuf,
    /// Override a key, e.g. `--set model.parametrization=mup`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Values of `model.hidden_size`; heads, key and value heads and the MLP grow in proportion.
    #[arg(long, value_delimiter = ',', required_unless_present = "depths")]
    widths: Vec<usize>,
    /// Values of `model.num_hidden_layers`.
    #[arg(long, value_delimiter = ',')]
    depths: Vec<usize>,
    /// Steps to train each model for.
    #[arg(long, default_value_t = 5)]
    steps: u64,
}

impl Coordcheck {
    /// Prints a row for each width, depth and step: loss, mean sizes of the residual stream after the
    /// embedding and the last block, of the logits, of their change, and of that of the last block.
    ///
    /// # Errors
    /// If a config cannot be resolved or an update is refused.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(
            out,
            "| width | depth | step | loss | embedding | last block | logits | change | moved |"
        )?;
        writeln!(out, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
        let num_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        tch::set_num_threads(num_threads as i32);
        for (width, depth) in self.sizes()? {
            let plan = config::load(&self.file, &self.at_size(width, depth)?)?;
            let kind = match plan.precision {
                Precision::Bf16 => Kind::BFloat16,
                Precision::Fp32 => Kind::Float,
                Precision::Fp64 => Kind::Double,
            };
            let compute = Compute::new(Device::Cpu, kind, num_threads);
            for row in coordinates(&plan, compute, self.steps)? {
                let last = row.stream.last().context("a model has an embedding")?;
                writeln!(
                    out,
                    "| {width} | {depth} | {} | {:.4} | {:.5} | {last:.5} | {:.5} | {:.5} | {:.5} |",
                    row.step, row.loss, row.stream[0], row.logits, row.change, row.moved
                )?;
            }
        }
        Ok(())
    }

    /// The file's own model.
    fn model(&self) -> Result<LlamaConfig> {
        match config::load(&self.file, &self.overrides)?.model {
            ModelConfig::Llama(model) => Ok(model),
            _ => {
                anyhow::bail!("model.model_type is not \"llama\", the family that muP is there for")
            }
        }
    }

    /// Every width with every depth; the file's own where none are given.
    fn sizes(&self) -> Result<Vec<(usize, usize)>> {
        let model = self.model()?;
        let or_own =
            |sizes: &[usize], own| if sizes.is_empty() { vec![own] } else { sizes.to_vec() };
        let depths = or_own(&self.depths, model.num_hidden_layers);
        let widths = or_own(&self.widths, model.hidden_size);
        let all = widths.into_iter().flat_map(|w| depths.iter().map(move |&d| (w, d)));
        Ok(all.collect())
    }

    /// The overrides that make the file's model one of this size.
    fn at_size(&self, width: usize, depth: usize) -> Result<Vec<String>> {
        let model = self.model()?;
        let own = model.hidden_size;
        let scaled = |key: &str, size: usize| -> Result<String> {
            let grown = size * width;
            anyhow::ensure!(
                grown.is_multiple_of(own) && grown > 0,
                "--widths {width}: model.{key} = {size} times {width} / {own} is not whole; use a \
                 multiple of {own}, or another ratio that divides it"
            );
            Ok(format!("model.{key}={}", grown / own))
        };
        let mut overrides = self.overrides.clone();
        overrides.push(format!("model.hidden_size={width}"));
        overrides.push(format!("model.num_hidden_layers={depth}"));
        overrides.push(format!("model.head_dim={}", model.head_dim));
        overrides.push(scaled("intermediate_size", model.intermediate_size)?);
        overrides.push(scaled("num_attention_heads", model.num_attention_heads)?);
        overrides.push(scaled("num_key_value_heads", model.num_key_value_heads)?);
        Ok(overrides)
    }
}
