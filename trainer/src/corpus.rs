//! The run's data: opened, checked against the model, split; text is tokenized once into the
//! run's folder.

mod mix;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use grove_data::{
    Corpus, Loader, LoaderConfig, Mixture, MixtureSource, Packing, Prefetcher, Source,
    SourceOptions, Split, Stage, Tokenizer, Validation,
};
use grove_optim::BatchRamp;
use grove_parallel::{Assignment, Collective};

pub use mix::{order_step, stages, stages_from_toml, stages_to_toml};

use crate::config::{self, DataSource, Plan};
use crate::error::Error;
use crate::guard::Exclusions;
use crate::signals::StopRequest;
use crate::step_numbers::agree_to_stop;

/// The token file that text is turned into, in the run's folder.
const TOKENS_OF_TEXT: &str = "data.tokens";

/// Batches assembled ahead of the step.
const PREFETCH_BATCHES: usize = 4;

/// Tokens that are not those that a run was begun with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The token file or folder.
    pub path: PathBuf,
    /// The fingerprint that the run was begun with.
    pub expected: String,
    /// That of the tokens there are.
    pub found: String,
}

/// The run's training and validation data.
#[derive(Debug)]
pub struct Data {
    /// The only source, or those of a mixture in the order of their names: so the order in which
    /// a file lists them has no meaning.
    sources: Vec<MixtureSource>,
    is_mixture: bool,
    /// Identifies the training tokens; for a mixture `name=fingerprint` of each source.
    pub fingerprint: String,
    /// The training tokens; of a mixture the first source's.
    pub path: PathBuf,
}

impl Data {
    /// Opens the plan's data, which [`prepare`] has made ready.
    ///
    /// # Errors
    /// If a file is missing, damaged, or of another vocabulary than the model's.
    pub fn open(plan: &Plan) -> Result<Self, Error> {
        let DataSource::Sources(wanted) = &plan.data.source else {
            let path = token_path(plan);
            let corpus = open_split(&path, plan.data.validation.as_ref(), plan)?;
            let fingerprint = corpus.part(Split::Train).file.fingerprint().to_string();
            let source = MixtureSource { name: "data".to_owned(), corpus, max_epochs: None };
            return Ok(Self { sources: vec![source], is_mixture: false, fingerprint, path });
        };
        let mut sources = Vec::new();
        for source in wanted {
            let corpus = open_split(&source.tokens, source.validation.as_ref(), plan)?;
            let (name, max_epochs) = (source.name.clone(), source.max_epochs);
            sources.push(MixtureSource { name, corpus, max_epochs });
        }
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        let file = |source: &MixtureSource| source.corpus.part(Split::Train).file.clone();
        let fingerprint =
            |source: &MixtureSource| format!("{}={}", source.name, file(source).fingerprint());
        let fingerprints: Vec<String> = sources.iter().map(fingerprint).collect();
        let path = sources.first().map(|source| file(source).path().to_owned());
        Ok(Self {
            is_mixture: true,
            fingerprint: fingerprints.join("\n"),
            path: path.expect("the plan refuses a mixture without sources"),
            sources,
        })
    }

    /// The first source whose tokens are not those of `fingerprint`, which a run was begun with; a
    /// mixture may have got more sources.
    pub fn difference(&self, fingerprint: &str) -> Option<Difference> {
        let of = |source: &MixtureSource| {
            let file = &source.corpus.part(Split::Train).file;
            (file.path().to_owned(), file.fingerprint().to_string())
        };
        let compared = |expected: &str, source: Option<&MixtureSource>| {
            let (path, found) =
                source.map_or_else(|| (self.path.clone(), "missing".to_owned()), of);
            let expected = expected.to_owned();
            (found != expected).then_some(Difference { path, expected, found })
        };
        if !self.is_mixture {
            return compared(fingerprint, self.sources.first());
        }
        fingerprint.lines().find_map(|line| {
            let (name, expected) = line.rsplit_once('=').unwrap_or(("", line));
            compared(expected, self.sources.iter().find(|source| source.name == name))
        })
    }

    /// The order of the training batches, with these weights.
    ///
    /// # Errors
    /// If the data holds no whole sequence, the packing asks for documents that are not known, or
    /// the sources do not go together.
    pub fn loader(&self, plan: &Plan, stages: &[Stage]) -> Result<Loader, Error> {
        let config = LoaderConfig {
            sequence_length: plan.batch.sequence_length,
            micro_batch_size: plan.batch.micro_batch_size,
            micro_batches_per_step: plan.batch.micro_batches,
            seed: plan.seed,
        };
        let mixture = if self.is_mixture {
            Mixture::new(self.sources.clone(), stages, &config)?
        } else {
            Mixture::of_one(self.sources[0].corpus.clone(), &config)?
        };
        Ok(Loader::of_mixture(Arc::new(mixture), packing(plan), config)?)
    }

    /// This rank's training batches from `first_step` on, without what is excluded, assembled
    /// ahead.
    ///
    /// # Errors
    /// Those of [`Data::loader`], or if there are more ranks than micro-batches.
    pub fn batches(
        &self,
        plan: &Plan,
        collective: &dyn Collective,
        (first_step, excluded): (u64, &Exclusions),
        stages: &[Stage],
    ) -> Result<Prefetcher, Error> {
        let loader = self.loader(plan, stages)?;
        let (ramp, degree, rank) = (plan.batch.ramp(), collective.degree(), collective.rank());
        Assignment::new(ramp.least() as usize, degree)?;
        let of_step = move |(step, data_step)| {
            let own = (rank as u64..ramp.count(step)).step_by(degree);
            own.map(move |index| place(&ramp, data_step, index))
        };
        let places = (first_step..).zip(excluded.from_step(first_step)).flat_map(of_step);
        Ok(Prefetcher::over(loader, places, PREFETCH_BATCHES)?)
    }

    /// The training tokens of each source, by its name.
    pub fn training_sources(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.sources
            .iter()
            .map(|source| (source.name.as_str(), &source.corpus.part(Split::Train).file))
    }

    /// The validation windows of each source that has some, by its name; cut at documents where
    /// training rows are.
    ///
    /// # Errors
    /// If there is no whole batch of them.
    pub fn validation(&self, plan: &Plan) -> Result<Vec<(String, Validation)>, Error> {
        let (length, batch_size) = (plan.batch.sequence_length, plan.batch.micro_batch_size);
        let mut windows = Vec::new();
        for source in &self.sources {
            let part = source.corpus.part(Split::Validation);
            if self.is_mixture && part.range.is_empty() {
                continue;
            }
            let (file, range) = (part.file.clone(), part.range.clone());
            let all = Validation::new(file, range, length, batch_size)?;
            let all =
                if plan.data.mask_documents == Some(true) { all.cut_at_documents()? } else { all };
            windows.push((source.name.clone(), all));
        }
        Ok(windows)
    }
}

/// Where the data order has micro-batch `index` of a data step, both from 0: its step and index in
/// it, as [`Loader::micro_batch`] takes them.
///
/// Micro-batches are numbered through the run. Under a ramp a step begins wherever the one before
/// it has ended, within what would be a full step. Where data was left out, a step of the ramp takes
/// the first micro-batches of a later one, which has as many or more.
pub fn place(ramp: &BatchRamp, data_step: u64, index: u64) -> (u64, u64) {
    let number = ramp.before(data_step) + index;
    (number / ramp.full(), number % ramp.full())
}

/// The step and the index in it of what the data order has at `place`: the inverse of [`place`].
pub fn step_of(ramp: &BatchRamp, (step, index): (u64, u64)) -> (u64, u64) {
    let number = step * ramp.full() + index;
    // Steps of a ramp have fewer micro-batches, so it is this step or a later one.
    let (mut low, mut high) = (step, step + 1);
    while ramp.before(high) <= number {
        (low, high) = (high, high + (high - step));
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if ramp.before(middle) <= number { low = middle } else { high = middle }
    }
    (low, number - ramp.before(low))
}

fn packing(plan: &Plan) -> Packing {
    match plan.data.packing {
        config::Packing::Contiguous => Packing::Contiguous,
        config::Packing::ContiguousByDocument => Packing::ContiguousByDocument,
        config::Packing::DocumentAligned => Packing::DocumentAligned,
        config::Packing::BestFit => Packing::BestFit,
    }
}

/// Turns the plan's text, if it is text, into tokens on rank 0, while the others wait. Returns
/// whether a rank was asked to stop.
///
/// # Errors
/// If the text cannot be read or the tokens not be written.
///
/// # Collectives
/// One all-reduce.
pub fn prepare(
    plan: &Plan,
    collective: &dyn Collective,
    stop: &StopRequest,
) -> Result<bool, Error> {
    if let (DataSource::Text(text), 0) = (&plan.data.source, collective.rank()) {
        match tokenize(plan, text, stop) {
            Err(Error::Data(grove_data::Error::Interrupted)) => {}
            outcome => outcome?,
        }
    }
    Ok(agree_to_stop(collective, stop)?)
}

/// The tokenizer of a plan.
///
/// # Errors
/// If its files are missing or damaged, or it has ids that the model does not.
pub fn tokenizer(plan: &Plan, wanted: &config::Tokenizer) -> Result<Tokenizer, Error> {
    let tokenizer = Tokenizer::from_spec(&String::from(wanted.clone()))?;
    let (found, expected) = (tokenizer.vocab_size() as usize, plan.model.spec().vocab_size);
    if found > expected {
        return Err(Error::Tokenizer { tokenizer: tokenizer.describe(), expected, found });
    }
    Ok(tokenizer)
}

/// The token data of a plan of one source.
fn token_path(plan: &Plan) -> PathBuf {
    match &plan.data.source {
        DataSource::Tokens(path) => path.clone(),
        DataSource::Text(_) | DataSource::Sources(_) => plan.run.dir.join(TOKENS_OF_TEXT),
    }
}

/// Turns text into the run's token file. It is done again at each start: for text that belongs in
/// a config this takes less than checking whether it changed; larger text wants `grove tokenize`.
fn tokenize(plan: &Plan, text: &Path, stop: &StopRequest) -> Result<(), Error> {
    let wanted = plan.data.tokenizer.as_ref().expect("the plan refuses text without a tokenizer");
    let tokenizer = tokenizer(plan, wanted)?;
    grove_data::tokenize_text_file(text, token_path(plan), &tokenizer, stop.flag())?;
    Ok(())
}

/// A source's training and validation tokens.
fn open_split(
    path: &Path,
    validation: Option<&config::Validation>,
    plan: &Plan,
) -> Result<Corpus, Error> {
    let train = open_checked(path, plan)?;
    Ok(match validation {
        None => Corpus::from_one_file(train, 0.0)?,
        Some(config::Validation::Fraction(fraction)) => Corpus::from_one_file(train, *fraction)?,
        Some(config::Validation::Tokens(path)) => {
            Corpus::from_two_files(train, open_checked(path, plan)?)?
        }
    })
}

/// Token data of any format that the data room reads; for those that do not record a vocabulary it
/// is the model's.
fn open_checked(path: &Path, plan: &Plan) -> Result<Source, Error> {
    let expected = plan.model.spec().vocab_size;
    let options = SourceOptions { vocab_size: u32::try_from(expected).ok(), ..Default::default() };
    let file = Source::open_with(path, &options)?;
    let found = file.vocab_size() as usize;
    if found > expected {
        return Err(Error::Vocabulary { path: path.to_owned(), expected, found });
    }
    Ok(file)
}
