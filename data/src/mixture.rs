//! Several sources in given proportions: which source, and which of its samples, sample `n` is.
//!
//! A pure function of the seed and the weights, by arithmetic: nothing is drawn, stored or
//! counted on the way, so a run resumes at any step, and any past step can be looked up.

mod interleave;
mod report;
mod stages;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

pub use report::SourceReport;
pub use stages::with_weights_from;
use stages::{ResolvedStage, resolve};

use crate::error::{MixtureError, Result, SourceError};
use crate::loader::LoaderConfig;
use crate::order::{Order, hash_pair};
use crate::split::{Corpus, Part, Split};
use crate::validation::Validation;

/// A source of a mixture.
#[derive(Clone, Debug)]
pub struct MixtureSource {
    /// What stages and reports call it. The order of its samples depends on the seed and this
    /// name, so other sources may come and go without changing it.
    pub name: String,
    /// Its training and validation tokens.
    pub corpus: Corpus,
    /// After this many epochs it is used no more, and the others take over its share by their
    /// weights; `None` for no limit.
    pub max_epochs: Option<f64>,
}

/// Weights from a step on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The first step of the stage; 0 for the first stage.
    pub first_step: u64,
    /// Weights by name of the source, in any scale; a source that is not named has weight 0.
    pub weights: BTreeMap<String, f64>,
}

/// One row's place in the mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Draw {
    /// Number of the source.
    pub(crate) source: usize,
    /// The source's sample number, over all its epochs.
    pub(crate) sample: u64,
}

/// Sources and the weights of every step, resolved.
#[derive(Clone, Debug)]
pub struct Mixture {
    sources: Vec<Member>,
    stages: Vec<ResolvedStage>,
    /// The first step that no source has data for.
    end_step: u64,
    samples_per_step: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) corpus: Corpus,
    pub(crate) order: Order,
    /// Samples after which it is used no more.
    max_samples: Option<u64>,
}

impl Member {
    pub(crate) fn part(&self) -> &Part {
        self.corpus.part(Split::Train)
    }
}

impl Mixture {
    /// Resolves sources and stages for a run with these numbers.
    ///
    /// # Errors
    /// [`MixtureError`] in its variants; [`SourceError::MixedTokenizers`] if the sources were not
    /// made with one vocabulary; those of [`Order::new`].
    pub fn new(
        sources: Vec<MixtureSource>,
        stages: &[Stage],
        config: &LoaderConfig,
    ) -> Result<Self> {
        config.check()?;
        check_names(&sources)?;
        check_tokenizers(&sources)?;
        let members: Result<Vec<Member>> = sources
            .into_iter()
            .map(|source| {
                let name_hash = XxHash3_64::oneshot(source.name.as_bytes());
                Member::new(source, hash_pair(config.seed, name_hash), config.sequence_length)
            })
            .collect();
        let samples_per_step = config.samples_per_step();
        Self::resolve(members?, stages, samples_per_step, config.seed)
    }

    /// The mixture of one source alone, named `data`, in the order of [`Order`] for the seed as it
    /// is: that of [`crate::Loader::new`].
    ///
    /// # Errors
    /// Those of [`Order::new`].
    pub fn of_one(corpus: Corpus, config: &LoaderConfig) -> Result<Self> {
        let name = "data".to_owned();
        let stage = Stage { first_step: 0, weights: BTreeMap::from([(name.clone(), 1.0)]) };
        let source = MixtureSource { name, corpus, max_epochs: None };
        let member = Member::new(source, config.seed, config.sequence_length)?;
        Self::resolve(vec![member], &[stage], config.samples_per_step(), config.seed)
    }

    fn resolve(
        sources: Vec<Member>,
        stages: &[Stage],
        samples_per_step: u64,
        seed: u64,
    ) -> Result<Self> {
        let (stages, end_step) = resolve(&sources, stages, samples_per_step, seed)?;
        Ok(Self { sources, stages, end_step, samples_per_step })
    }

    /// Names of the sources, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(|source| source.name.as_str())
    }

    /// The first step that there is no data for, because every source with a weight has reached
    /// its `max_epochs`; `u64::MAX` if that never happens.
    pub fn end_step(&self) -> u64 {
        self.end_step
    }

    /// A 64-bit name of the content of each source, by name; a checkpoint stores them.
    pub fn fingerprints(&self) -> BTreeMap<String, u64> {
        let fingerprint = |source: &Member| (source.name.clone(), source.part().file.fingerprint());
        self.sources.iter().map(fingerprint).collect()
    }

    /// Compares fingerprints with those that a run was begun with. A source that is new is not
    /// compared.
    ///
    /// # Errors
    /// [`SourceError::Changed`] for one that differs, [`MixtureError::UnknownSource`] for one that
    /// is gone.
    pub fn expect_fingerprints(&self, expected: &BTreeMap<String, u64>) -> Result<()> {
        for (name, &expected) in expected {
            self.member(name)?.part().file.expect_fingerprint(expected)?;
        }
        Ok(())
    }

    /// The validation batches of one source.
    ///
    /// # Errors
    /// [`MixtureError::UnknownSource`], and those of [`Validation::new`].
    pub fn validation(
        &self,
        name: &str,
        sequence_length: usize,
        micro_batch_size: usize,
    ) -> Result<Validation> {
        let part = self.member(name)?.corpus.part(Split::Validation);
        Validation::new(part.file.clone(), part.range.clone(), sequence_length, micro_batch_size)
    }

    pub(crate) fn sources(&self) -> &[Member] {
        &self.sources
    }

    pub(crate) fn member(&self, name: &str) -> Result<&Member> {
        let found = self.sources.iter().find(|source| source.name == name);
        found.ok_or_else(|| {
            let known = self.names().collect::<Vec<_>>().join(", ");
            MixtureError::UnknownSource { name: name.to_owned(), known }.into()
        })
    }

    /// Which source's sample is sample `sample` of the run.
    ///
    /// # Errors
    /// [`MixtureError::Exhausted`] if its step has no data.
    pub(crate) fn draw(&self, sample: u64) -> Result<Draw> {
        let step = sample / self.samples_per_step;
        if step >= self.end_step {
            return Err(MixtureError::Exhausted { step: self.end_step }.into());
        }
        let stage = self.stage_of(step);
        let (source, index) = stage.interleave.at(sample - stage.first_sample);
        Ok(Draw { source, sample: stage.bases[source] + index })
    }

    /// The sample of the run that a source's sample is; `None` if it is never drawn.
    pub(crate) fn sample_of(&self, draw: Draw) -> Option<u64> {
        let is_later = |stage: &ResolvedStage| stage.bases[draw.source] <= draw.sample;
        // Several stages begin at the same number if they do not use the source: the last one
        // that does not begin behind it is the one that draws it.
        let stage = self.stages.partition_point(is_later).checked_sub(1)?;
        let stage = &self.stages[stage];
        let index = draw.sample - stage.bases[draw.source];
        let sample = stage.interleave.index_of(draw.source, index)?;
        let sample = stage.first_sample.checked_add(sample)?;
        (sample / self.samples_per_step < self.end_step).then_some(sample)
    }

    /// Samples drawn from each source before step `step`.
    pub(crate) fn counts(&self, step: u64) -> Vec<u64> {
        let step = step.min(self.end_step);
        let Some(last) = step.checked_sub(1) else { return vec![0; self.sources.len()] };
        let stage = self.stage_of(last);
        let num_samples = step.saturating_mul(self.samples_per_step) - stage.first_sample;
        let count =
            |(source, base): (usize, &u64)| base + stage.interleave.count(source, num_samples);
        stage.bases.iter().enumerate().map(count).collect()
    }

    fn stage_of(&self, step: u64) -> &ResolvedStage {
        let stage = self.stages.partition_point(|stage| stage.first_step <= step) - 1;
        &self.stages[stage]
    }
}

impl Member {
    fn new(source: MixtureSource, seed: u64, sequence_length: usize) -> Result<Self> {
        let MixtureSource { name, corpus, max_epochs } = source;
        let range = &corpus.part(Split::Train).range;
        let order = Order::new(range.end - range.start, sequence_length as u64, seed)?;
        if let Some(found) = max_epochs.filter(|&epochs| epochs.is_nan() || epochs <= 0.0) {
            return Err(MixtureError::MaxEpochs { name, found }.into());
        }
        let max_samples = max_epochs.map(|epochs| (epochs * order.num_windows() as f64) as u64);
        Ok(Self { name, corpus, order, max_samples })
    }
}

fn check_names(sources: &[MixtureSource]) -> Result<()> {
    if sources.is_empty() {
        return Err(MixtureError::Empty { what: "source" }.into());
    }
    let mut names = BTreeSet::new();
    match sources.iter().find(|source| !names.insert(&source.name)) {
        Some(twice) => Err(MixtureError::SameName { name: twice.name.clone() }.into()),
        None => Ok(()),
    }
}

/// Refuses sources whose ids do not mean the same: another vocabulary where both say which, or
/// another vocabulary size.
fn check_tokenizers(sources: &[MixtureSource]) -> Result<()> {
    let files = sources.iter().map(|source| &source.corpus.part(Split::Train).file);
    let refuse =
        |file: &crate::Source, other: &crate::Source, of: &dyn Fn(&crate::Source) -> String| {
            let (path, other_path) = (file.path().to_owned(), other.path().to_owned());
            let (found, expected) = (of(file), of(other));
            Err(SourceError::MixedTokenizers { path, found, other: other_path, expected }.into())
        };
    let (mut first, mut first_known) = (None, None);
    for file in files {
        let first = *first.get_or_insert(file);
        if file.vocab_size() != first.vocab_size() {
            return refuse(file, first, &|file| format!("vocab_size {}", file.vocab_size()));
        }
        let Some(tokenizer) = file.tokenizer() else { continue };
        let (known, expected) = *first_known.get_or_insert((file, tokenizer));
        if tokenizer.vocabulary_fingerprint != expected.vocabulary_fingerprint {
            return refuse(file, known, &|file| {
                file.tokenizer().map_or_else(String::new, |tokenizer| tokenizer.description.clone())
            });
        }
    }
    Ok(())
}
