//! `grove grow`: a larger model from a smaller one, with its certificate.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use grove_data::{TokenFile, Validation};
use grove_parallel::LocalCollective;
use tch::Tensor;

use crate::checkpoint::hash_masters;
use crate::config::{self, DataSource, GrowthPlan, Plan};
use crate::corpus::{self, Data};
use crate::error::Error;
use crate::growth::certificate::{
    Certificate, EXACT_IN_FP32, LearnedMap, claims_function, is_exact, mean_loss, measure,
};
use crate::growth::ligo::{Learned, Learning, NOISE, learn};
use crate::growth::shape::{with_layers, with_widths};
use crate::growth::start::grown_source;
use crate::growth::{Parts, StoredModel, compared, explain, grow, states, writing};
use crate::guard::Exclusions;
use crate::recipe::rules_of;
use crate::signals::StopRequest;

/// `grove grow`.
#[derive(Debug, Args)]
pub struct Grow {
    /// The model to grow: a run's folder (its newest checkpoint), a checkpoint, or a Hugging Face
    /// folder.
    source: PathBuf,
    /// The TOML file of the larger model's run; its `[init.growth]` says how to grow.
    #[arg(long)]
    config: PathBuf,
    /// The folder to write to: a checkpoint of step 0, and growth.json beside it.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print what happens to each parameter; without `--out` nothing else.
    #[arg(long)]
    explain: bool,
    /// A token file to compare the two models on; else the config's validation data.
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// Override a key, e.g. `--set init.growth.depth=stack`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

impl Grow {
    /// Grows, writes, measures, and says what was measured.
    ///
    /// # Errors
    /// If the source does not fit the config (all reasons at once), if nothing can be written, or
    /// if operators that claim to keep the function did not.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        let _no_graph = tch::no_grad_guard();
        ensure!(self.explain || self.out.is_some(), "give --out DIR to write to, or --explain");
        let mut overrides = self.overrides.clone();
        overrides.push(format!("init.from='{}'", self.source.display()));
        let plan = config::load(&self.config, &overrides)?;
        let growth = plan.init.growth.unwrap_or(GrowthPlan::DEFAULT);
        ensure!(
            growth.mask_steps == 0,
            "init.growth.mask_steps = {} needs the steps of a run, and a folder has none; give it to \
             grove train with init.from, or set it to 0",
            growth.mask_steps
        );
        let open = || StoredModel::open(&self.source);
        let (source, rules) = (open()?, rules_of(&plan)?);
        states::check(&source, &rules, &growth).map_err(Error::from)?;
        let mut spent = source.checkpoint().map_or((0, 0), |checkpoint| {
            (checkpoint.run_state().num_tokens, checkpoint.run_state().total_flops)
        });
        let mut grown = grown_source(Box::new(open()?), &plan, (&self.source, &growth))?;
        let mut unlearned = None;
        if growth.learn_steps > 0 {
            let learned = learned(&source, (&plan, &growth), out)?;
            let ends = (learned.losses.first(), learned.losses.last());
            let (first_loss, last_loss) = ends.0.zip(ends.1).map_or((0.0, 0.0), |(a, b)| (*a, *b));
            let map = LearnedMap {
                steps: growth.learn_steps,
                num_tokens: learned.num_tokens,
                first_loss,
                last_loss,
                unlearned_loss: f64::NAN,
            };
            spent.0 += learned.num_tokens;
            spent.1 += u128::from(learned.num_tokens) * u128::from(plan.derived.flops_per_token);
            // What is left: a head of its own, more rows.
            let name = self.source.display().to_string();
            let whole = grow(Box::new(learned.model), &plan.model, &growth, (&name, plan.seed));
            let operators_alone = std::mem::replace(&mut grown, whole.map_err(Error::from)?);
            unlearned = Some((operators_alone, map));
        }
        if self.explain {
            explain(&*grown).iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        let Some(folder) = &self.out else { return Ok(()) };
        let files = source.files();
        let checkpoint = writing::write(&*grown, (&plan, &rules), spent, (folder, files))?;
        let certificate =
            self.certificate((&source, &*grown), unlearned, (&plan, growth), &checkpoint)?;
        let path = folder.join("growth.json");
        let text = serde_json::to_string_pretty(&certificate)?;
        fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
        say(&certificate, &checkpoint, out)?;
        ensure!(
            certificate.is_exact || !certificate.claims_function,
            "the operators claim to keep the function and did not: see {}; grow in fp32 masters, \
             or report this",
            path.display()
        );
        Ok(())
    }

    fn certificate(
        &self,
        (source, grown): (&StoredModel, &dyn Parts),
        unlearned: Option<(Box<dyn Parts + '_>, LearnedMap)>,
        (plan, operators): (&Plan, GrowthPlan),
        checkpoint: &Path,
    ) -> Result<Certificate> {
        let (tokens, described) = self.compared_tokens(source, plan)?;
        let measured = measure(source, (grown, None), &tokens);
        let claims_function = claims_function(source.config(), &plan.model, &operators);
        Ok(Certificate {
            source: self.source.display().to_string(),
            source_hash: source.hash()?,
            grown_hash: Some(hash_masters(checkpoint)?),
            operators,
            seed: plan.seed,
            claims_function,
            tolerance: EXACT_IN_FP32,
            is_exact: claims_function && is_exact(&measured),
            learned: unlearned.map(|(operators_alone, map)| LearnedMap {
                unlearned_loss: mean_loss(&*operators_alone, &tokens),
                ..map
            }),
            tokens: described,
            measured,
        })
    }

    /// Held-out sequences `[B, S + 1]`, or made up ones where there are none.
    fn compared_tokens(&self, source: &StoredModel, plan: &Plan) -> Result<(Tensor, String)> {
        let spec = source.config().spec();
        let windows = match &self.tokens {
            Some(path) => {
                let (file, (length, count)) =
                    (TokenFile::open(path)?, compared::sizes(&spec, plan));
                let range = 0..file.num_tokens();
                let windows = Validation::new(file.into(), range, length, count)?;
                Some((windows, path.display().to_string()))
            }
            None => held_out(plan).map(|windows| (windows, "the validation data".to_owned())),
        };
        Ok(match windows {
            Some((windows, from)) => compared::held_out((&windows, &from), &spec, plan)?,
            None => compared::made_up(&spec, plan),
        })
    }
}

/// The plan's validation data, if it is there as tokens.
fn held_out(plan: &Plan) -> Option<Validation> {
    plan.eval?;
    let windows = Data::open(plan).ok()?.validation(plan).ok()?;
    windows.into_iter().next().map(|(_, windows)| windows)
}

/// Learns the map from the config's training data, a micro-batch a step.
fn learned(
    source: &StoredModel,
    (plan, growth): (&Plan, &GrowthPlan),
    out: &mut dyn Write,
) -> Result<Learned> {
    let target =
        with_layers(&with_widths(source.config(), &plan.model), plan.model.spec().num_layers);
    let learning = Learning {
        steps: growth.learn_steps,
        lr: plan.optim.lr,
        depth: growth.depth,
        noise: NOISE,
        seed: plan.seed,
    };
    let alone = LocalCollective::new();
    if matches!(plan.data.source, DataSource::Text(_)) {
        fs::create_dir_all(&plan.run.dir)
            .with_context(|| format!("make {}", plan.run.dir.display()))?;
    }
    corpus::prepare(plan, &alone, &StopRequest::never())?;
    let prefetcher = Data::open(plan)?.batches(plan, &alone, (0, &Exclusions::default()))?;
    let mut batches = std::iter::repeat_with(|| {
        let batch = prefetcher.next()?;
        let ids: Vec<i64> = batch.tokens.iter().map(|&id| i64::from(id)).collect();
        Ok(Tensor::from_slice(&ids).view([-1, batch.sequence_length as i64 + 1]))
    });
    let learned = learn(source, &target, &learning, &mut batches)?;
    if let (Some(first), Some(last)) = (learned.losses.first(), learned.losses.last()) {
        writeln!(out, "learned in {} steps: loss {first:.4} -> {last:.4}", learned.losses.len())?;
    }
    Ok(learned)
}

fn say(certificate: &Certificate, checkpoint: &Path, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "wrote {}", checkpoint.display())?;
    Ok(certificate.lines().iter().try_for_each(|line| writeln!(out, "{line}"))?)
}
