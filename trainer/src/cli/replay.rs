//! `grove replay`: a step that went wrong, once more.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use grove_parallel::Launch;
use grove_parallel::collective::LocalCollective;

use crate::blackbox::BlackBox;
use crate::device;
use crate::replay::{self, From, Replay as Found, replay};

/// `grove replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// A black box: `<run.dir>/blackbox/step-N`.
    folder: PathBuf,
    /// The checkpoint whose weights to use; by default the newest of the run before the step, and
    /// the initial weights where there is none.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Train from there up to the step, to have the very weights that it had.
    #[arg(long)]
    advance: bool,
}

impl Replay {
    /// Prints losses, norms by unit and parameter, and the first tensor that is not finite.
    ///
    /// # Errors
    /// If the black box or the checkpoint is not whole.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        let black_box = BlackBox::open(&self.folder)?;
        let (report, plan) = (&black_box.report, &black_box.plan);
        let compute = device::compute(plan, &Launch::from_environment()?)?;
        let from = From { checkpoint: self.checkpoint.clone(), advance: self.advance };
        let found = replay(&self.folder, &from, compute, &LocalCollective::new())?;
        let what = report.trip.describe();
        writeln!(
            out,
            "step {} {what}: loss {}, norm {}",
            report.step, report.loss, report.grad_norm
        )?;
        let missing = report.step - 1 - found.weights_step;
        let exact = match missing {
            0 => "as it had".to_owned(),
            steps => format!("{steps} before it; --advance trains up to it"),
        };
        writeln!(
            out,
            "again with the weights of step {} ({exact}): loss {}, norm {}",
            found.weights_step, found.loss, found.grad_norm
        )?;
        print(&found, out)
    }
}

fn print(found: &Found, out: &mut dyn Write) -> Result<()> {
    let count = |not_finite: u64| match not_finite {
        0 => String::new(),
        count => format!("  {count} NOT FINITE"),
    };
    for (index, replay::MicroReplay { loss_sum, outputs }) in found.micro_batches.iter().enumerate()
    {
        writeln!(out, "micro-batch {index}: summed loss {loss_sum}")?;
        for (unit, size) in outputs {
            writeln!(out, "  {unit:<16} output norm {:.4e}{}", size.norm, count(size.not_finite))?;
        }
    }
    for param in &found.parameters {
        writeln!(
            out,
            "{:<56} gradient {:.4e}{}  weight {:.4e}{}",
            param.name,
            param.gradient.norm,
            count(param.gradient.not_finite),
            param.weight.norm,
            count(param.weight.not_finite)
        )?;
    }
    match &found.first_not_finite {
        Some(tensor) => writeln!(out, "first not finite: {tensor}")?,
        None => writeln!(out, "all finite")?,
    }
    Ok(())
}
