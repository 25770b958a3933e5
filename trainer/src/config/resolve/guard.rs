//! `[guard]` and `[watchdog]`: defaults and ranges.

use std::net::IpAddr;

use super::{Problems, Shown};
use crate::config::plan::{GuardPlan, Policy, WatchdogPlan};
use crate::config::run_config::{GuardTable, WatchdogTable};

/// Steps in a row that may go wrong, unless the file says otherwise.
const MAX_TRIPS: u64 = 10;

/// Past steps that a spike stands out from: long beside the noise of a batch, short beside a run.
const SPIKE_WINDOW: usize = 64;

/// The fewest values whose spread says anything.
const MIN_SPIKE_WINDOW: usize = 8;

/// Ten minutes: longer than the first step, save or evaluation of any run that is well.
const STALL_SECONDS: f64 = 600.0;

pub(super) fn guard(table: &GuardTable, problems: &mut Problems) -> GuardPlan {
    let non_finite = table.non_finite.unwrap_or(Policy::Stop);
    let spike_zscore = table.spike_zscore.unwrap_or(0.0);
    problems.require_not_negative("guard.spike_zscore", spike_zscore, "use 0 to look for none");
    let looks = spike_zscore > 0.0;
    let spike = looks.then(|| table.spike.unwrap_or(Policy::Skip));
    let window = table.spike_window.unwrap_or(SPIKE_WINDOW);
    problems.require(
        window >= MIN_SPIKE_WINDOW,
        "guard.spike_window",
        window,
        format!("is below {MIN_SPIKE_WINDOW}, too few to tell a spike from noise"),
        format!("use {SPIKE_WINDOW}"),
    );
    let policies = [Some(non_finite), spike];
    let goes_on = policies.iter().flatten().any(|&policy| policy != Policy::Stop);
    let rewinds = policies.contains(&Some(Policy::Rewind));
    let max_trips = table.max_trips.unwrap_or(MAX_TRIPS);
    let remedy = "use 1 or more, or the policy \"stop\"";
    problems.require(max_trips > 0, "guard.max_trips", max_trips, "must be above 0", remedy);
    let mut exclude_steps = table.exclude_steps.clone().unwrap_or_default();
    exclude_steps.sort_unstable();
    exclude_steps.dedup();
    let remedy = "give the numbers of steps, from 1, as in metrics.jsonl";
    let zero = exclude_steps.first() == Some(&0);
    problems.require(!zero, "guard.exclude_steps", 0, "is not a step", remedy);
    GuardPlan {
        non_finite,
        spike_zscore,
        spike,
        spike_window: looks.then_some(window),
        max_trips: goes_on.then_some(max_trips),
        snapshot_every: rewinds.then(|| table.snapshot_every.unwrap_or(0)),
        exclude_steps,
        black_box: table.black_box.unwrap_or(true),
    }
}

pub(super) fn watchdog(table: &WatchdogTable, problems: &mut Problems) -> WatchdogPlan {
    let stall_seconds = table.stall_seconds.unwrap_or(STALL_SECONDS);
    problems.require_not_negative("watchdog.stall_seconds", stall_seconds, "use 0 for no watchdog");
    let beat_seconds = table.beat_seconds.unwrap_or(1.0);
    problems.require(
        beat_seconds >= 0.05 && (stall_seconds == 0.0 || 4.0 * beat_seconds <= stall_seconds),
        "watchdog.beat_seconds",
        Shown(beat_seconds),
        format!("must be at least 0.05 and at most a quarter of stall_seconds = {stall_seconds:?}"),
        "use 1.0, with stall_seconds of 4 or more",
    );
    let address = table.address.clone().unwrap_or_default();
    problems.require(
        address.is_empty() || address.parse::<IpAddr>().is_ok(),
        "watchdog.address",
        &address,
        "is not an IP address",
        "give one of rank 0's host that all hosts reach, such as \"10.0.0.1\", or \"\"",
    );
    WatchdogPlan { stall_seconds, beat_seconds, address }
}
