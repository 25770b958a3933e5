//! `grove data`: what a step saw, which steps saw a document, and what the sources are like.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use grove_data::{Loader, PieceReceipt, Source, SourceStats, Tokenizer};
use grove_parallel::Assignment;

use crate::config::{self, Plan};
use crate::corpus::{self, Data};
use crate::folder;

/// `grove data`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// List the documents that a step sees.
    At(At),
    /// List the steps that see a document.
    Seen(Seen),
    /// Count the documents of token data, or of a run's sources.
    Stats(Stats),
}

/// A run whose data is asked about.
#[derive(Debug, Args)]
struct Run {
    /// The run's TOML file.
    #[arg(long)]
    config: PathBuf,
    /// Override a key, e.g. `--set seed=2`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// `grove data at`.
#[derive(Debug, Args)]
pub struct At {
    /// The run.
    #[command(flatten)]
    run: Run,
    /// The step, from 1 as in the metrics.
    #[arg(long)]
    step: u64,
    /// Only what this rank computes, of `--ranks`.
    #[arg(long, requires = "ranks")]
    rank: Option<usize>,
    /// Ranks of the run: says which of them computes what.
    #[arg(long)]
    ranks: Option<usize>,
    /// Characters of text shown of each piece; 0 for all.
    #[arg(long, default_value_t = 60)]
    characters: usize,
    /// Another tokenizer than the config's, to show text.
    #[arg(long)]
    tokenizer: Option<String>,
}

/// `grove data seen`.
#[derive(Debug, Args)]
pub struct Seen {
    /// The run.
    #[command(flatten)]
    run: Run,
    /// The document: the name or path of a source and a document of it, from 0; or a file that was
    /// tokenized and a record of it, from 1.
    #[arg(value_name = "FILE:DOC")]
    document: String,
    /// The last step that is asked about; the run's last by default.
    #[arg(long)]
    until: Option<u64>,
}

/// `grove data stats`.
#[derive(Debug, Args)]
pub struct Stats {
    /// Token data of any format.
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    tokens: Option<PathBuf>,
    /// Tokens of a row, to count the documents that are longer.
    #[arg(long, default_value_t = 1024, conflicts_with = "config")]
    context: u64,
    /// A run's TOML file: all of its sources, and how much of each the run uses.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Override a key of the TOML file; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
}

impl DataCommand {
    /// Prints what was asked.
    ///
    /// # Errors
    /// If the config or the data cannot be opened, or there is no such step, rank or document.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        match self {
            Self::At(command) => command.run(out),
            Self::Seen(command) => command.run(out),
            Self::Stats(command) => command.run(out),
        }
    }
}

impl Run {
    /// The plan, its data, and the order that the run has or would have: past steps with the
    /// weights that its newest checkpoint records.
    fn open(&self) -> Result<(Plan, Data, Loader)> {
        let plan = config::load(&self.config, &self.overrides)?;
        let data = Data::open(&plan)?;
        let newest = folder::newest(&plan)?;
        if let Some(checkpoint) = &newest
            && let Some(difference) = data.difference(&checkpoint.run_state().data_fingerprint)
        {
            bail!(
                "{} is not what {} was trained on: its fingerprint is {}, expected {}; restore it, \
                 or name another run.dir",
                difference.path.display(),
                checkpoint.folder().display(),
                difference.found,
                difference.expected,
            );
        }
        let loader = data.loader(&plan, &folder::stages(&plan, newest.as_ref())?)?;
        Ok((plan, data, loader))
    }
}

impl At {
    fn run(&self, out: &mut dyn Write) -> Result<()> {
        let (plan, _, loader) = self.run.open()?;
        ensure!(self.step > 0, "--step 0: steps count from 1");
        let step = self.step - 1;
        let tokenizer = match (&self.tokenizer, &plan.data.tokenizer) {
            (Some(spec), _) => Some(Tokenizer::from_spec(spec)?),
            (None, Some(wanted)) => Some(corpus::tokenizer(&plan, wanted)?),
            (None, None) => None,
        };
        let ranks = self.ranks.unwrap_or(1);
        let ramp = plan.batch.ramp();
        let assignment = Assignment::new(ramp.count(step) as usize, ranks)?;
        if let Some(rank) = self.rank {
            ensure!(rank < ranks, "--rank {rank} is not one of --ranks {ranks}; use 0 to {}", {
                ranks - 1
            });
        }
        for rank in (0..ranks).filter(|&rank| self.rank.is_none_or(|wanted| wanted == rank)) {
            for index in assignment.of_rank(rank) {
                let (at, number) = corpus::place(&ramp, step, index as u64);
                let tokens = loader.micro_batch(at, number)?.tokens;
                let rows = tokens.chunks(plan.batch.sequence_length + 1);
                for (receipt, row) in loader.receipt(at, number)?.iter().zip(rows) {
                    writeln!(
                        out,
                        "step {}, micro-batch {index} (rank {rank}), row {}: source {}, epoch {}",
                        self.step, receipt.row, receipt.source, receipt.epoch,
                    )?;
                    for piece in &receipt.pieces {
                        writeln!(out, "  {}", in_words(piece))?;
                        let text = self.text(&row[piece.columns.clone()], tokenizer.as_ref())?;
                        writeln!(out, "    {text}")?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Text as a quoted string; ids where there is no tokenizer.
    fn text(&self, ids: &[u32], tokenizer: Option<&Tokenizer>) -> Result<String> {
        let shorten = |text: String| match self.characters {
            0 => text,
            most if text.chars().count() <= most => text,
            most => text.chars().take(most).chain("...".chars()).collect(),
        };
        Ok(match tokenizer {
            Some(tokenizer) => format!("{:?}", shorten(tokenizer.decode(ids)?)),
            None => shorten(format!("{ids:?}")),
        })
    }
}

fn in_words(piece: &PieceReceipt) -> String {
    let PieceReceipt { columns, tokens, document, file, byte, origin } = piece;
    let document = document.map_or(String::new(), |document| format!(" of document {document}"));
    let place = format!("{} byte {byte}", file.display());
    let origin = origin.as_ref().map_or(String::new(), |origin| {
        format!(", from {} record {}", origin.input.display(), origin.record + 1)
    });
    format!("columns {columns:?}: tokens {tokens:?}{document}, {place}{origin}")
}

impl Seen {
    fn run(&self, out: &mut dyn Write) -> Result<()> {
        let (plan, data, loader) = self.run.open()?;
        let (source, document) = self.find(&data)?;
        let until = self.until.unwrap_or(plan.run.steps);
        let ramp = plan.batch.ramp();
        let mut count = 0;
        for sighting in loader.seen(&source, document, 0..corpus::order_step(&plan, until))? {
            let (step, index) = corpus::step_of(&ramp, (sighting.step, sighting.micro_batch));
            if step < until {
                let (step, row, tokens) = (step + 1, sighting.row, sighting.tokens);
                writeln!(out, "step {step}, micro-batch {index}, row {row}: tokens {tokens:?}")?;
                count += 1;
            }
        }
        writeln!(out, "document {document} of {source}: {count} time(s) in steps 1 to {until}")?;
        Ok(())
    }

    /// The source and the document of it that `FILE:DOC` means.
    fn find(&self, data: &Data) -> Result<(String, u64)> {
        let expected = "expected FILE:DOC, such as web:17 or texts/a.jsonl:3";
        let asked = &self.document;
        let (file, number) =
            asked.rsplit_once(':').with_context(|| format!("{asked}: {expected}"))?;
        let number: u64 = number.parse().with_context(|| format!("{asked}: {expected}"))?;
        for (name, source) in data.training_sources() {
            if name == file || source.path() == Path::new(file) {
                return Ok((name.to_owned(), number));
            }
        }
        ensure!(number > 0, "{asked}: records of a tokenized file count from 1");
        let written = Path::new(file);
        let whole = written.canonicalize().unwrap_or_else(|_| written.to_owned());
        for (name, source) in data.training_sources() {
            let found =
                [written, &whole].iter().find_map(|path| source.find_document(path, number - 1));
            if let Some(document) = found {
                return Ok((name.to_owned(), document));
            }
        }
        let names: Vec<&str> = data.training_sources().map(|(name, _)| name).collect();
        bail!(
            "{asked}: no source is called or lies at {file}, and none was made from record {number} \
             of it; the sources are {}",
            names.join(", ")
        )
    }
}

impl Stats {
    fn run(&self, out: &mut dyn Write) -> Result<()> {
        let Some(config) = &self.config else {
            let path = self.tokens.as_ref().expect("clap asks for one of the two");
            return describe(out, &Source::open(path)?, self.context);
        };
        let run = Run { config: config.clone(), overrides: self.overrides.clone() };
        let (plan, data, loader) = run.open()?;
        let reports = loader.mixture().report(corpus::order_step(&plan, plan.run.steps));
        for ((name, source), report) in data.training_sources().zip(reports) {
            writeln!(out, "{name}:")?;
            describe(out, source, plan.batch.sequence_length as u64 + 1)?;
            writeln!(
                out,
                "  {:.1} % of the rows of {} steps: {} rows, {:.2} epochs of {} training tokens",
                100.0 * report.share,
                plan.run.steps,
                report.num_samples,
                report.epochs,
                report.num_tokens,
            )?;
        }
        Ok(())
    }
}

/// What a source holds; `context` is the number of tokens in a row.
fn describe(out: &mut dyn Write, source: &Source, context: u64) -> Result<()> {
    let path = source.path().display();
    writeln!(out, "  {path}: {} tokens, ids below {}", source.num_tokens(), source.vocab_size())?;
    if let Some(tokenizer) = source.tokenizer() {
        writeln!(out, "  tokenizer {}", tokenizer.description)?;
    }
    if source.num_documents().is_none() {
        writeln!(out, "  where documents begin is not known")?;
        return Ok(());
    }
    let stats = source.stats(context)?;
    let SourceStats { num_tokens, num_documents, min_tokens, max_tokens, .. } = stats;
    let (longer, by_length) = (stats.num_longer_than_context, stats.by_length);
    let mean = num_tokens as f64 / num_documents.max(1) as f64;
    writeln!(
        out,
        "  {num_documents} documents of {min_tokens} to {max_tokens} tokens, {mean:.1} on average; \
         {longer} longer than {context} tokens"
    )?;
    for (class, count) in by_length.iter().enumerate().filter(|(_, count)| **count > 0) {
        let (first, last) = (1_u64 << class, (2_u64 << class) - 1);
        writeln!(out, "  {first:>10} to {last:>10} tokens: {count}")?;
    }
    Ok(())
}
