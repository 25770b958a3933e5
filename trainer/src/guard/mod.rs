//! Steps that go wrong: told from good ones before their update, by rules that see only numbers
//! which are the same on every rank.

mod exclusions;
mod history;
mod spread;
#[cfg(test)]
mod tests;

pub use exclusions::Exclusions;
pub use history::{GuardRecord, History};

use crate::config::{GuardPlan, Policy};
use crate::metrics::Trip;

/// What counts as going wrong, and what it leads to.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    non_finite: Policy,
    spikes: Option<Spikes>,
    max_trips: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Spikes {
    zscore: f64,
    policy: Policy,
    window: usize,
}

/// A step that went wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tripped {
    /// How.
    pub trip: Trip,
    /// What it leads to.
    pub policy: Policy,
}

impl Rules {
    /// The rules of a plan.
    pub fn new(plan: &GuardPlan) -> Self {
        let spikes = match (plan.spike, plan.spike_window) {
            (Some(policy), Some(window)) => {
                Some(Spikes { zscore: plan.spike_zscore, policy, window })
            }
            _ => None,
        };
        let max_trips = plan.max_trips.unwrap_or(0);
        Self { non_finite: plan.non_finite, spikes, max_trips }
    }

    /// Judges a step by its mean loss and gradient norm, which are sums over all ranks: every rank
    /// comes to the same word. `None` for a good step.
    ///
    /// A value spikes if it lies above the median of as many past values as the window holds by
    /// `zscore` of their robust standard deviations; before there are as many, none does.
    pub fn judge(&self, history: &History, loss: f64, grad_norm: f64) -> Option<Tripped> {
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Some(Tripped { trip: Trip::NonFinite, policy: self.non_finite });
        }
        let Spikes { zscore, policy, window } = self.spikes?;
        let spikes = |past: &[f64], value| {
            past.len() >= window && spread::zscore(&past[past.len() - window..], value) >= zscore
        };
        let trip = match (spikes(history.losses(), loss), spikes(history.grad_norms(), grad_norm)) {
            (true, _) => Trip::LossSpike,
            (_, true) => Trip::NormSpike,
            _ => return None,
        };
        Some(Tripped { trip, policy })
    }

    /// Whether some step that went wrong would be passed over, its state kept.
    pub fn may_skip(&self) -> bool {
        let of_spikes = self.spikes.is_some_and(|spikes| spikes.policy == Policy::Skip);
        self.non_finite == Policy::Skip || of_spikes
    }

    /// How many past steps are worth remembering.
    pub fn window(&self) -> usize {
        self.spikes.map_or(0, |spikes| spikes.window)
    }

    /// Whether so many steps in a row that went wrong are too many.
    pub fn is_exhausted(&self, trips: u64) -> bool {
        trips > self.max_trips
    }
}
