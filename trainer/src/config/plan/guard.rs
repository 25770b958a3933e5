//! What a plan does about steps that go wrong, and about ranks that do.

use serde::{Deserialize, Serialize};

/// `[guard]`: what happens at a step whose loss or gradient is not finite, or spikes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuardPlan {
    /// What a loss or gradient that is not finite leads to.
    pub non_finite: Policy,
    /// The robust z-score from which a loss or gradient norm is a spike; 0 for none.
    pub spike_zscore: f64,
    /// What a spike leads to; none where spikes are not looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spike: Option<Policy>,
    /// Past steps that a spike stands out from; none where spikes are not looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spike_window: Option<usize>,
    /// Steps in a row that may go wrong; none where the first one ends the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_trips: Option<u64>,
    /// Steps between snapshots of the state in host memory, 0 for none; none without a rewind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_every: Option<u64>,
    /// Steps, from 1, whose data is left out: what such a step would have seen is never used.
    pub exclude_steps: Vec<u64>,
    /// Whether a step that goes wrong leaves a folder with its batch and norms.
    pub black_box: bool,
}

impl Default for GuardPlan {
    /// The plan of a run from before there were guards.
    fn default() -> Self {
        Self {
            non_finite: Policy::Stop,
            spike_zscore: 0.0,
            spike: None,
            spike_window: None,
            max_trips: None,
            snapshot_every: None,
            exclude_steps: Vec::new(),
            black_box: true,
        }
    }
}

/// What a step that went wrong leads to; its update is never made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The run ends with an error.
    Stop,
    /// The step counts, without its update.
    Skip,
    /// The run goes back to the last good state and leaves the step's data out.
    Rewind,
}

/// `[watchdog]`: what happens when a rank hangs, stops or vanishes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WatchdogPlan {
    /// Seconds without progress after which a run counts as stalled and is ended; 0 for no
    /// watchdog.
    pub stall_seconds: f64,
    /// Seconds between the beats of a rank.
    pub beat_seconds: f64,
    /// The IP address on which ranks 0 and 1 listen for ranks of other hosts; empty to choose one.
    pub address: String,
}

impl Default for WatchdogPlan {
    /// No watchdog: the plan of a run from before there was one.
    fn default() -> Self {
        Self { stall_seconds: 0.0, beat_seconds: 1.0, address: String::new() }
    }
}
