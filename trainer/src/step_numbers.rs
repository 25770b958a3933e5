//! Numbers that ranks bring together: sums that do not depend on the order of their terms, and
//! what all must agree on.

use grove_parallel::{Collective, ExactSum, Reduction};
use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::signals::StopRequest;

/// Bytes of a rank's text in [`first_text`].
const TEXT_BYTES: usize = 512;

/// Numbers of this rank, or of all: sums that do not depend on the order of their terms.
#[derive(Clone, Debug)]
pub struct StepNumbers {
    /// The summed loss.
    pub loss: ExactSum,
    /// The summed divergence from a teacher, in steps in which one counts.
    pub divergence: Option<ExactSum>,
    /// Tokens.
    pub num_tokens: u64,
    /// Ranks that were asked to stop.
    pub stops: u64,
    /// How far the ranks are with saving.
    pub saves: SaveCounts,
}

/// Ranks that have ended their part of the present stage of a save, as numbers that a step brings
/// over ranks with its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaveCounts {
    /// Ranks that are done with it, well or not.
    pub done: u64,
    /// Ranks that failed.
    pub failed: u64,
}

/// What a rank has to tell the others at the end of a step.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a> {
    /// Whether it was asked to stop.
    pub stop: &'a StopRequest,
    /// How far it is with saving.
    pub saves: SaveCounts,
    /// Whether ranks that are asked to stop leave a step before its next micro-batch. They ask each
    /// other before each one then.
    pub leaves_step: bool,
}

impl StepNumbers {
    /// None.
    pub fn zero() -> Self {
        let (loss, saves) = (ExactSum::new(), SaveCounts::default());
        Self { loss, divergence: None, num_tokens: 0, stops: 0, saves }
    }

    /// With what this rank has to tell.
    pub fn telling(self, word: Word<'_>) -> Self {
        Self { stops: u64::from(word.stop.is_asked()), saves: word.saves, ..self }
    }

    /// Sums the numbers of all ranks, on all of them.
    ///
    /// # Errors
    /// If the collective fails.
    ///
    /// # Collectives
    /// One all-reduce.
    pub fn over_ranks(&self, collective: &dyn Collective) -> Result<Self, grove_parallel::Error> {
        let mut numbers = self.loss.to_digits();
        let loss_digits = numbers.len();
        numbers.extend(self.divergence.iter().flat_map(ExactSum::to_digits));
        let SaveCounts { done, failed } = self.saves;
        let counts = [self.num_tokens, self.stops, done, failed];
        numbers.extend(counts.map(|count| count as i64));
        let numbers = sum_integers(collective, &numbers, "step numbers")?;
        let (digits, sums) = numbers.split_at(numbers.len() - counts.len());
        let [num_tokens, stops, done, failed] = std::array::from_fn(|i| sums[i] as u64);
        let (loss, divergence) = digits.split_at(loss_digits);
        let divergence = self.divergence.as_ref().map(|_| ExactSum::from_digits(divergence));
        let (loss, saves) = (ExactSum::from_digits(loss), SaveCounts { done, failed });
        Ok(Self { loss, divergence, num_tokens, stops, saves })
    }
}

/// Sums a few integers over ranks.
///
/// # Errors
/// If the collective fails.
///
/// # Collectives
/// One all-reduce.
pub fn sum_integers(
    collective: &dyn Collective,
    values: &[i64],
    name: &str,
) -> Result<Vec<i64>, grove_parallel::Error> {
    let tensor = Tensor::from_slice(values);
    collective.all_reduce(&tensor, Reduction::Sum, name)?.wait()?;
    Ok(Vec::try_from(tensor).expect("a vector of i64"))
}

impl SaveCounts {
    /// Sums the counts of all ranks, on all of them.
    ///
    /// # Errors
    /// If the collective fails.
    ///
    /// # Collectives
    /// One all-reduce.
    pub fn over_ranks(self, collective: &dyn Collective) -> Result<Self, grove_parallel::Error> {
        let counts = [self.done as i64, self.failed as i64];
        let sums = sum_integers(collective, &counts, "ranks that are done with a save")?;
        Ok(Self { done: sums[0] as u64, failed: sums[1] as u64 })
    }
}

/// The first text, in rank order, that is not empty, on every rank; cut to [`TEXT_BYTES`].
///
/// # Errors
/// If the collective fails.
///
/// # Collectives
/// One all-gather.
pub fn first_text(
    collective: &dyn Collective,
    text: &str,
    name: &str,
) -> Result<String, grove_parallel::Error> {
    let mut mine = text.as_bytes().to_vec();
    mine.resize(TEXT_BYTES, 0);
    let mine = Tensor::from_slice(&mine);
    let len = (collective.degree() * TEXT_BYTES) as i64;
    let all = Tensor::zeros([len], (Kind::Uint8, Device::Cpu));
    collective.all_gather(&mine, &all, name)?.wait()?;
    let all: Vec<u8> = Vec::try_from(all).expect("a vector of u8");
    let texts = all
        .chunks(TEXT_BYTES)
        .map(|text| String::from_utf8_lossy(text).trim_end_matches(['\0', '\u{fffd}']).to_owned());
    Ok(texts.into_iter().find(|text| !text.is_empty()).unwrap_or_default())
}

/// Whether any rank was asked to stop: the same answer on all.
///
/// # Errors
/// If the collective fails.
///
/// # Collectives
/// One all-reduce.
pub fn agree_to_stop(
    collective: &dyn Collective,
    stop: &StopRequest,
) -> Result<bool, grove_parallel::Error> {
    let stops = sum_integers(collective, &[i64::from(stop.is_asked())], "requests to stop")?;
    Ok(stops[0] > 0)
}

/// Refuses to go on unless every rank brings the same numbers.
///
/// # Errors
/// [`Error::RanksDiffer`] with the first number that differs and the first rank in which it does;
/// or a failed collective.
///
/// # Collectives
/// One all-gather.
pub fn agree_on<const N: usize>(
    collective: &dyn Collective,
    numbers: [(&'static str, i64); N],
) -> Result<(), Error> {
    let mine = Tensor::from_slice(&numbers.map(|(_, number)| number));
    let all = Tensor::zeros([(collective.degree() * N) as i64], (Kind::Int64, Device::Cpu));
    collective.all_gather(&mine, &all, "what the ranks start from")?.wait()?;
    let all: Vec<i64> = Vec::try_from(all).expect("a vector of i64");
    for (index, (what, _)) in numbers.into_iter().enumerate() {
        let differs = |rank: &usize| all[rank * N + index] != all[index];
        if let Some(rank) = (0..collective.degree()).find(differs) {
            return Err(Error::RanksDiffer { what, rank });
        }
    }
    Ok(())
}
