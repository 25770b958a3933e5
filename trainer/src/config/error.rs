//! What can be wrong with a run's configuration, each said with key, place and remedy.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// One thing wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {}: {message}; expected a TOML file", path.display())]
    Read {
        /// The file, as named on the command line or by `extends`.
        path: PathBuf,
        /// The operating system's message.
        message: String,
    },
    /// A file is not TOML.
    #[error("{} line {line} column {column}: not TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in bytes.
        column: usize,
        /// The parser's message.
        message: String,
    },
    /// An override is not `key=value`.
    #[error("--set {text}: {problem}; expected --set key=value, such as --set optim.lr=1e-3")]
    Override {
        /// The override as given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Files extend each other in a circle.
    #[error("extends goes in a circle: {}; remove one of these", chain_in_words(chain))]
    ExtendsCycle {
        /// The files in order; the last one is also an earlier one.
        chain: Vec<PathBuf>,
    },
    /// A key that nothing reads.
    #[error("unknown key `{key}` in {origin}{}", suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The full path, such as `optim.lerning_rate`.
        key: String,
        /// The file or override that sets it.
        origin: String,
        /// The known key that was probably meant.
        nearest: Option<String>,
    },
    /// A value of the wrong type, or not one of the words allowed.
    #[error("key `{key}` in {origin}: expected {expected}, found {found}")]
    WrongType {
        /// The full path.
        key: String,
        /// The file or override that sets it.
        origin: String,
        /// The type, or the words allowed.
        expected: String,
        /// The value's type and text.
        found: String,
    },
    /// A key that has no default is not set.
    #[error("missing key `{key}` in {origin}; expected {about}")]
    MissingKey {
        /// The full path.
        key: String,
        /// The file of the run.
        origin: String,
        /// What the key means.
        about: String,
    },
    /// A key is set that cannot take effect.
    #[error("key `{key}` in {origin} has no effect because {because}; remove it")]
    NoEffect {
        /// The full path.
        key: String,
        /// The file or override that sets it.
        origin: String,
        /// The setting that takes its effect away.
        because: String,
    },
    /// Two keys are set of which only one may be.
    #[error("keys `{first}` and `{second}` are both set in {origin}; keep one of them")]
    Exclusive {
        /// The one key.
        first: String,
        /// The other key.
        second: String,
        /// The file or override that sets both.
        origin: String,
    },
    /// A value breaks a rule.
    #[error("{key} = {found} {problem}; {remedy}")]
    Invalid {
        /// The full path.
        key: String,
        /// The value.
        found: String,
        /// The rule that fails, with the other numbers in it.
        problem: String,
        /// What to write instead.
        remedy: String,
    },
    /// There are ranks without work.
    #[error(
        "{key} = {micro_batches} is fewer than the {ranks} ranks, so that some would have no work; \
         use at most {micro_batches} ranks, or set {key} to {ranks} or more (a multiple of the \
         ranks wastes nothing)"
    )]
    Ranks {
        /// `batch.micro_batches`, or `batch.ramp_from` where a ramp starts with fewer.
        key: &'static str,
        /// Micro-batches in the smallest step, over all ranks.
        micro_batches: u64,
        /// Ranks of the run; above 0.
        ranks: u64,
    },
    /// Shard groups do not fill the ranks.
    #[error(
        "parallel.shard_degree = {shard_degree} does not divide the {ranks} ranks; use {}, or 0 for \
         all ranks",
        divisors_in_words(*ranks as u64)
    )]
    ShardDegree {
        /// Ranks of a shard group.
        shard_degree: usize,
        /// Ranks of the run; above 0.
        ranks: usize,
    },
    /// A micro-step that is to be recorded has calls between ranks in it.
    #[error(
        "gpu.graphs = true records micro-steps without calls between ranks, found {ranks} ranks; use \
         gpu.graphs = false, or one rank"
    )]
    GraphsOfRanks {
        /// Ranks of the run.
        ranks: usize,
    },
    /// The table of keys allows what the tables of the file do not: a defect of this program.
    #[error("{}: {message}; expected the schema to refuse this: please report it", path.display())]
    SchemaBehind {
        /// The run's file.
        path: PathBuf,
        /// The parser's message.
        message: String,
    },
    /// A saved plan cannot be read.
    #[error("saved plan: {message}; expected the plan.toml of a checkpoint by this version")]
    SavedPlan {
        /// The parser's message.
        message: String,
    },
}

/// All that is wrong with a configuration, one problem a line; never empty.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct ConfigErrors {
    /// The problems, in the order of the keys.
    pub problems: Vec<ConfigError>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(problem: ConfigError) -> Self {
        Self { problems: vec![problem] }
    }
}

fn suggestion(nearest: Option<&str>) -> String {
    match nearest {
        Some(key) => format!("; did you mean `{key}`?"),
        None => "; remove it".to_owned(),
    }
}

fn chain_in_words(chain: &[PathBuf]) -> String {
    let names: Vec<String> = chain.iter().map(|path| path.display().to_string()).collect();
    names.join(" -> ")
}

/// "1, 2 or 4": the divisors of a number, at most eight of them.
fn divisors_in_words(number: u64) -> String {
    const MOST_SHOWN: usize = 8;
    let divisors: Vec<String> = (1..=number)
        .filter(|divisor| number.is_multiple_of(*divisor))
        .take(MOST_SHOWN)
        .map(|divisor| divisor.to_string())
        .collect();
    match divisors.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => divisors.concat(),
    }
}
