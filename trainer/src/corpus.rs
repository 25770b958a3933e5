//! The run's data: opened, checked against the model, split; text is tokenized once into the
//! run's folder.

use std::path::{Path, PathBuf};

use grove_data::{
    Corpus, Loader, LoaderConfig, Prefetcher, Source, SourceOptions, Split, Tokenizer,
};
use grove_parallel::{Assignment, Collective};

use crate::config::{self, DataSource, Plan};
use crate::error::Error;
use crate::signals::StopRequest;
use crate::step_numbers::agree_to_stop;

/// The token file that text is turned into, in the run's folder.
const TOKENS_OF_TEXT: &str = "data.tokens";

/// Batches assembled ahead of the step.
const PREFETCH_BATCHES: usize = 4;

/// The run's training and validation data.
#[derive(Debug)]
pub struct Data {
    corpus: Corpus,
    /// Identifies the training tokens.
    pub fingerprint: String,
    /// The training token file.
    pub path: PathBuf,
}

impl Data {
    /// Opens the plan's data, which [`prepare`] has made ready.
    ///
    /// # Errors
    /// If a file is missing, damaged, or of another vocabulary than the model's.
    pub fn open(plan: &Plan) -> Result<Self, Error> {
        let path = token_path(plan);
        let train = open_checked(&path, plan)?;
        let fingerprint = train.fingerprint();
        let corpus = match &plan.data.validation {
            None => Corpus::from_one_file(train, 0.0)?,
            Some(config::Validation::Fraction(fraction)) => {
                Corpus::from_one_file(train, *fraction)?
            }
            Some(config::Validation::Tokens(path)) => {
                Corpus::from_two_files(train, open_checked(path, plan)?)?
            }
        };
        Ok(Self { corpus, fingerprint: fingerprint.to_string(), path })
    }

    /// This rank's training batches from `first_step` on, assembled ahead.
    ///
    /// # Errors
    /// If the data holds no whole sequence, or there are more ranks than micro-batches.
    pub fn batches(
        &self,
        plan: &Plan,
        collective: &dyn Collective,
        first_step: u64,
    ) -> Result<Prefetcher, Error> {
        let part = self.corpus.part(Split::Train);
        let config = LoaderConfig {
            sequence_length: plan.batch.sequence_length,
            micro_batch_size: plan.batch.micro_batch_size,
            micro_batches_per_step: plan.batch.micro_batches,
            seed: plan.seed,
        };
        let loader = Loader::new(part.file.clone(), part.range.clone(), config)?;
        let (ramp, degree, rank) = (plan.batch.ramp(), collective.degree(), collective.rank());
        Assignment::new(ramp.least() as usize, degree)?;
        // Micro-batches are numbered through the run. Under a ramp a step begins wherever the one
        // before it has ended, within what would be a full step.
        let of_step = move |step| {
            let (first, count) = (ramp.before(step), ramp.count(step));
            let numbers = (rank as u64..count).step_by(degree).map(move |index| first + index);
            numbers.map(move |number| (number / ramp.full(), number % ramp.full()))
        };
        let places = (first_step..).flat_map(of_step);
        Ok(Prefetcher::over(loader, places, PREFETCH_BATCHES)?)
    }

    /// The validation windows.
    ///
    /// # Errors
    /// If there is no whole batch of them.
    pub fn validation(&self, plan: &Plan) -> Result<grove_data::Validation, Error> {
        let part = self.corpus.part(Split::Validation);
        Ok(grove_data::Validation::new(
            part.file.clone(),
            part.range.clone(),
            plan.batch.sequence_length,
            plan.batch.micro_batch_size,
        )?)
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

fn token_path(plan: &Plan) -> PathBuf {
    match &plan.data.source {
        DataSource::Tokens(path) => path.clone(),
        DataSource::Text(_) => plan.run.dir.join(TOKENS_OF_TEXT),
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
