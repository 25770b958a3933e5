//! Stages of weights, cut further where a source reaches its limit of epochs.

use std::collections::BTreeMap;

use super::interleave::{Interleave, SMALLEST_SHARE};
use super::{Member, Stage};
use crate::error::{MixtureError, Result};
use crate::order::hash_pair;

/// A stretch of steps with fixed shares.
#[derive(Clone, Debug)]
pub(super) struct ResolvedStage {
    pub(super) first_step: u64,
    pub(super) first_sample: u64,
    pub(super) interleave: Interleave,
    /// Samples drawn from each source before this stage.
    pub(super) bases: Vec<u64>,
}

/// The stages of a run whose weights change at `step`, as a resumed run with another mixture
/// has them: what was before stays as it was, and what comes after is replaced.
pub fn with_weights_from(
    stages: &[Stage],
    step: u64,
    weights: BTreeMap<String, f64>,
) -> Vec<Stage> {
    let mut stages: Vec<Stage> =
        stages.iter().filter(|stage| stage.first_step < step).cloned().collect();
    stages.push(Stage { first_step: step, weights });
    stages
}

/// Stages with shares in which no source passes its limit, and the first step without data.
pub(super) fn resolve(
    sources: &[Member],
    stages: &[Stage],
    samples_per_step: u64,
    seed: u64,
) -> Result<(Vec<ResolvedStage>, u64)> {
    check_order(stages)?;
    let mut resolved: Vec<ResolvedStage> = Vec::new();
    let mut bases = vec![0; sources.len()];
    for (number, stage) in stages.iter().enumerate() {
        let mut weights = weights_of(sources, stage, number)?;
        let end = stages.get(number + 1).map_or(u64::MAX, |next| next.first_step);
        let mut start = stage.first_step;
        while start < end {
            for (weight, (source, base)) in weights.iter_mut().zip(sources.iter().zip(&bases)) {
                // A source that cannot give a step's samples any more is left out for good.
                if source.max_samples.is_some_and(|max| *base >= max) {
                    *weight = 0.0;
                }
            }
            let total: f64 = weights.iter().sum();
            if total <= 0.0 {
                return Ok((resolved, start));
            }
            let shares: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
            let interleave = Interleave::new(&shares, hash_pair(seed, start));
            check_shares(sources, &shares, (&interleave, number))?;
            let limited = |step: u64| {
                let num_samples = (step - start).saturating_add(1).saturating_mul(samples_per_step);
                let passes = |index: usize| {
                    let count = bases[index] + interleave.count(index, num_samples);
                    sources[index].max_samples.is_some_and(|max| count > max)
                };
                (0..sources.len()).find(|&index| passes(index))
            };
            let stop = first_step_where(start, end, |step| limited(step).is_some());
            let first_sample = start.saturating_mul(samples_per_step);
            let num_samples = (stop - start).saturating_mul(samples_per_step);
            let counts: Vec<u64> =
                (0..sources.len()).map(|index| interleave.count(index, num_samples)).collect();
            let stage_bases = bases.clone();
            if stop < end {
                let index = limited(stop).expect("the step was found by this");
                weights[index] = 0.0;
            }
            if stop > start {
                let (first_step, bases) = (start, stage_bases);
                resolved.push(ResolvedStage { first_step, first_sample, interleave, bases });
            }
            bases.iter_mut().zip(counts).for_each(|(base, count)| *base += count);
            start = stop;
        }
    }
    Ok((resolved, u64::MAX))
}

/// The first step of `start..end` for which a condition holds that, once true, stays true; `end`
/// if it never does.
fn first_step_where(start: u64, end: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (start, end);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

fn check_order(stages: &[Stage]) -> Result<()> {
    let mut before = None;
    for (number, stage) in stages.iter().enumerate() {
        let expected = match before {
            None if stage.first_step == 0 => None,
            None => Some("0".to_owned()),
            Some(before) if stage.first_step > before => None,
            Some(before) => Some(format!("more than {before}")),
        };
        if let Some(expected) = expected {
            let found = stage.first_step;
            return Err(MixtureError::StageOrder { stage: number, found, expected }.into());
        }
        before = Some(stage.first_step);
    }
    if before.is_none() { Err(MixtureError::Empty { what: "stage" }.into()) } else { Ok(()) }
}

/// The weights of a stage in the order of the sources.
fn weights_of(sources: &[Member], stage: &Stage, number: usize) -> Result<Vec<f64>> {
    for (name, &weight) in &stage.weights {
        if !sources.iter().any(|source| source.name == *name) {
            let known: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
            let (name, known) = (name.clone(), known.join(", "));
            return Err(MixtureError::UnknownSource { name, known }.into());
        }
        if !weight.is_finite() || weight < 0.0 {
            return Err(MixtureError::Weight { stage: number, name: name.clone(), weight }.into());
        }
    }
    let weight = |source: &Member| stage.weights.get(&source.name).copied().unwrap_or(0.0);
    let weights: Vec<f64> = sources.iter().map(weight).collect();
    if weights.iter().sum::<f64>() > 0.0 {
        return Ok(weights);
    }
    Err(MixtureError::NoWeight { stage: number }.into())
}

fn check_shares(
    sources: &[Member],
    shares: &[f64],
    (interleave, stage): (&Interleave, usize),
) -> Result<()> {
    for (index, &share) in shares.iter().enumerate() {
        if share > 0.0 && interleave.quota(index) == 0 {
            let (name, smallest) = (sources[index].name.clone(), SMALLEST_SHARE);
            return Err(MixtureError::TinyShare { stage, name, share, smallest }.into());
        }
    }
    Ok(())
}
