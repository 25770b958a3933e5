//! What differs between the plan of a checkpoint and the plan of the run that resumes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use toml::{Table, Value};

use super::layers::flatten;
use super::plan::{DataSource, Meaning, OnChange, Plan, SourcePlan};

/// Keys and tables that may change over a resume: later shares of a mixture, where results go, how
/// often things are reported, how the same numbers are computed (to rounding), and what happens when
/// something goes wrong. All others have a meaning, new keys too until they are added here. Where
/// the training tokens lie is harmless, since a resume compares what they are.
const HARMLESS: &[&str] = &[
    "data.stages",
    "device",
    "run.dir",
    "data.tokens",
    "data.text",
    "data.tokenizer",
    "data.validation_tokens",
    "memory.",
    "parallel.",
    "gpu.fused",
    "gpu.attention",
    "gpu.graphs",
    "eval.",
    "checkpoint.",
    "guard.",
    "watchdog.",
    "metrics.",
    "profile.",
    "sample.",
    "optim.on_change",
    "derived.",
];

/// A change of meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it changes.
    pub meaning: Meaning,
    /// As `key: before -> after`.
    pub text: String,
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// How to allow changes of these meanings, as an override.
pub fn how_to_allow(meanings: impl Iterator<Item = Meaning>) -> String {
    let words: BTreeSet<Meaning> = meanings.collect();
    let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    format!("--set 'checkpoint.allow_changes=[{}]'", words.join(", "))
}

impl Plan {
    /// The keys whose change would silently change what a resumed run means, sorted by key; empty if
    /// the run may go on.
    ///
    /// `self` is the plan of the checkpoint, `other` the plan of the resuming run. A change of
    /// `run.steps` counts unless both schedules are constant, since every other shape depends on it.
    ///
    /// Shares of a mixture may change, and sources may come: what was drawn before stays as it was,
    /// which the run's state records. A source that was there must stay, with its limit of epochs
    /// and its part for validation.
    ///
    /// With `optim.on_change = "reset"` in `other`, its `[optim]` may be another; and `[schedule]`,
    /// `run.steps` and `optim.lr` if the checkpoint, after `step` steps, is where its
    /// `schedule.from_step` begins.
    pub fn meaning_changes(&self, other: &Self, step: u64) -> Vec<Change> {
        let (before, after) = (self.settings(), other.settings());
        let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let shown = |side: &BTreeMap<String, Value>, key: &str| match side.get(key) {
            None => "not set".to_owned(),
            Some(Value::Float(float)) => format!("{float:?}"),
            Some(other) => other.to_string(),
        };
        let is_constant = |plan: &Self| plan.schedule.is_endless();
        let steps_are_harmless = is_constant(self) && is_constant(other);
        keys.into_iter()
            .filter(|key| before.get(*key) != after.get(*key) && !is_harmless(key))
            .filter(|key| !(steps_are_harmless && *key == "run.steps"))
            .filter(|key| !(*key == "data.sources" && keeps_sources(self, other)))
            .filter(|key| !other.allows_change(key, step))
            .map(|key| Change {
                meaning: Meaning::of_key(key),
                text: format!("{key}: {} -> {}", shown(&before, key), shown(&after, key)),
            })
            .collect()
    }

    /// Whether this plan, of a run that resumes after `step` steps, says that a key may change.
    fn allows_change(&self, key: &str, step: u64) -> bool {
        if self.optim.on_change == OnChange::Reset && key.starts_with("optim.") {
            return true;
        }
        let is_next_phase = self.schedule.from_step == Some(step);
        let of_phase = key.starts_with("schedule.") || key == "run.steps" || key == "optim.lr";
        is_next_phase && of_phase
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        let table = Table::try_from(self);
        let table = table.expect("a plan holds only TOML types, and its integers fit in i64");
        flatten(table).into_iter().collect()
    }
}

/// Whether all sources of a mixture are in another one, with the same training tokens.
fn keeps_sources(before: &Plan, after: &Plan) -> bool {
    let (DataSource::Sources(before), DataSource::Sources(after)) =
        (&before.data.source, &after.data.source)
    else {
        return false;
    };
    let is_same = |old: &SourcePlan, new: &SourcePlan| {
        (&old.name, old.max_epochs, &old.validation) == (&new.name, new.max_epochs, &new.validation)
    };
    before.iter().all(|old| after.iter().any(|new| is_same(old, new)))
}

fn is_harmless(key: &str) -> bool {
    let covers =
        |prefix: &&str| key == *prefix || (prefix.ends_with('.') && key.starts_with(*prefix));
    HARMLESS.iter().any(covers)
}
