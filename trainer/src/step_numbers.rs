//! Numbers that ranks bring together: sums that do not depend on the order of their terms, and
//! what all must agree on.

use grove_parallel::{Collective, ExactSum, Reduction};
use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::signals::StopRequest;

/// Numbers of this rank, or of all: sums that do not depend on the order of their terms.
#[derive(Clone, Debug)]
pub struct StepNumbers {
    /// The summed loss.
    pub loss: ExactSum,
    /// Tokens.
    pub num_tokens: u64,
    /// Ranks that were asked to stop.
    pub stops: u64,
}

impl StepNumbers {
    /// None.
    pub fn zero() -> Self {
        Self { loss: ExactSum::new(), num_tokens: 0, stops: 0 }
    }

    /// With whether this rank was asked to stop.
    pub fn asked_to_stop(self, stop: &StopRequest) -> Self {
        Self { stops: u64::from(stop.is_asked()), ..self }
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
        numbers.extend([self.num_tokens as i64, self.stops as i64]);
        let numbers = sum_integers(collective, &numbers, "step numbers")?;
        let (digits, counts) = numbers.split_at(numbers.len() - 2);
        Ok(Self {
            loss: ExactSum::from_digits(digits),
            num_tokens: counts[0] as u64,
            stops: counts[1] as u64,
        })
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
