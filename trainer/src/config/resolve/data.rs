//! `[data]` from as written to as resolved.

use std::collections::BTreeSet;

use grove_optim::BatchRamp;

use super::super::error::ConfigError;
use super::super::plan::{
    BatchPlan, DataPlan, DataSource, Packing, SourcePlan, StagePlan, Tokenizer, Validation,
};
use super::super::run_config::{DataTable, RunConfig, SourceTable, StageTable};
use super::{Problems, Shown};
use crate::model::config::ModelConfig;

/// Token ids of the byte tokenizer.
const BYTE_TOKENS: usize = 256;

/// Resolves `[data]`.
pub(super) fn resolve(
    config: &RunConfig,
    model: &ModelConfig,
    batch: &BatchPlan,
    problems: &mut Problems,
) -> DataPlan {
    let table = &config.data;
    let missing = |key: &str, about: &str| ConfigError::MissingKey {
        key: key.to_owned(),
        origin: config.file.display().to_string(),
        about: about.to_owned(),
    };
    if table.tokens.is_none() && table.text.is_none() && table.sources.is_none() {
        problems.0.push(missing("data.tokens", "a token file, or a text file as data.text"));
    }
    if table.text.is_some() && table.tokenizer.is_none() {
        let about = "\"bytes\" or the path of a tokenizer, because data.text is set";
        problems.0.push(missing("data.tokenizer", about));
    }
    check_fraction("data.validation_fraction", table.validation_fraction, problems);
    let vocab_size = model.spec().vocab_size;
    problems.require(
        table.tokenizer != Some(Tokenizer::Bytes) || vocab_size >= BYTE_TOKENS,
        "model.vocab_size",
        vocab_size,
        format!("is below the {BYTE_TOKENS} token ids of data.tokenizer = \"bytes\""),
        format!("use {BYTE_TOKENS} or more"),
    );
    let packing = table.packing.unwrap_or_default();
    problems.require(
        table.text.is_none() || !packing.minds_documents(),
        "data.packing",
        in_words(packing),
        "needs to know where documents begin, which data.text does not tell",
        "turn the text into a folder with `grove tokenize`, and name that as data.tokens",
    );
    let fraction = table.validation_fraction.map(Validation::Fraction);
    DataPlan {
        source: source(table, problems),
        tokenizer: table.tokenizer.clone(),
        validation: fraction.or_else(|| table.validation_tokens.clone().map(Validation::Tokens)),
        packing,
        mask_documents: packing.minds_documents().then(|| table.mask_documents.unwrap_or(true)),
        stages: stages(table, batch, problems),
    }
}

fn in_words(packing: Packing) -> &'static str {
    match packing {
        Packing::Contiguous => "\"contiguous\"",
        Packing::ContiguousByDocument => "\"contiguous_by_document\"",
        Packing::DocumentAligned => "\"document_aligned\"",
        Packing::BestFit => "\"best_fit\"",
    }
}

fn check_fraction(key: &str, fraction: Option<f64>, problems: &mut Problems) {
    let Some(fraction) = fraction else { return };
    problems.require(
        fraction > 0.0 && fraction < 1.0,
        key,
        Shown(fraction),
        "must be above 0 and below 1",
        "use a part such as 0.05, or remove the key to do without validation",
    );
}

fn source(table: &DataTable, problems: &mut Problems) -> DataSource {
    if let Some(tables) = &table.sources {
        return DataSource::Sources(sources(tables, problems));
    }
    match (&table.tokens, &table.text) {
        (None, Some(text)) => DataSource::Text(text.clone()),
        (tokens, _) => DataSource::Tokens(tokens.clone().unwrap_or_default()),
    }
}

fn sources(tables: &[SourceTable], problems: &mut Problems) -> Vec<SourcePlan> {
    problems.require(
        !tables.is_empty(),
        "data.sources",
        "[]",
        "has no tables",
        "add a source, or name a token file as data.tokens",
    );
    let mut names = BTreeSet::new();
    let mut sources = Vec::new();
    for (number, table) in tables.iter().enumerate() {
        let key = |name: &str| format!("data.sources[{number}].{name}");
        let name = &table.name;
        let remedy = "give each source a name of its own";
        let is_new = names.insert(name);
        problems.require(is_new, &key("name"), name, "is the name of another source too", remedy);
        problems.require(!name.is_empty(), &key("name"), "\"\"", "must not be empty", remedy);
        let weight = table.weight.unwrap_or(1.0);
        problems.require_not_negative(&key("weight"), weight, "use 0 for none of it yet");
        if let Some(epochs) = table.max_epochs {
            problems.require_positive(&key("max_epochs"), epochs, "remove it for no limit");
        }
        check_fraction(&key("validation_fraction"), table.validation_fraction, problems);
        problems.require(
            table.validation_fraction.is_none() || table.validation_tokens.is_none(),
            &key("validation_fraction"),
            Shown(table.validation_fraction.unwrap_or(0.0)),
            "is set beside validation_tokens",
            "keep one of them",
        );
        let fraction = table.validation_fraction.map(Validation::Fraction);
        let tokens = table.validation_tokens.clone().map(Validation::Tokens);
        sources.push(SourcePlan {
            name: name.clone(),
            tokens: table.tokens.clone(),
            weight,
            max_epochs: table.max_epochs,
            validation: fraction.or(tokens),
        });
    }
    problems.require(
        tables.is_empty() || sources.iter().any(|source| source.weight > 0.0),
        "data.sources",
        "weights",
        "sum to 0, so that the first steps have no data",
        "give a source a weight above 0",
    );
    sources
}

fn stages(table: &DataTable, batch: &BatchPlan, problems: &mut Problems) -> Vec<StagePlan> {
    let names: Vec<&str> =
        table.sources.iter().flatten().map(|source| source.name.as_str()).collect();
    let mut stages: Vec<StagePlan> = Vec::new();
    for (number, stage) in table.stages.iter().flatten().enumerate() {
        let key = |name: &str| format!("data.stages[{number}].{name}");
        let from_step = first_step(stage, batch, (&key("from_step"), problems));
        let before = stages.last().map_or(0, |stage| stage.from_step);
        problems.require(
            from_step > before,
            &key("from_step"),
            from_step,
            format!("must be above {before}, where the weights before it begin"),
            "put stages in the order of their steps; the first weights are those of data.sources",
        );
        let unknown = stage.weights.keys().find(|name| !names.contains(&name.as_str()));
        if let Some(name) = unknown {
            let (problem, remedy) = ("is no source", format!("use {}", names.join(", ")));
            problems.require(false, &key("weights"), format!("{name:?}"), problem, remedy);
        }
        for (name, &weight) in &stage.weights {
            let remedy = "use 0, or leave the source out, for none of it";
            problems.require_not_negative(&key(&format!("weights.{name}")), weight, remedy);
        }
        problems.require(
            stage.weights.values().any(|weight| *weight > 0.0),
            &key("weights"),
            "weights",
            "sum to 0, so that the stage has no data",
            "give a source a weight above 0",
        );
        stages.push(StagePlan { from_step, weights: stage.weights.clone() });
    }
    stages
}

/// The step that a stage begins with. Tokens count positions, padding among them, and a stage that
/// begins within a step begins with the next.
fn first_step(
    stage: &StageTable,
    batch: &BatchPlan,
    (key, problems): (&str, &mut Problems),
) -> u64 {
    let each = (batch.micro_batch_size as u64).saturating_mul(batch.sequence_length as u64).max(1);
    match (stage.from_step, stage.from_tokens) {
        (Some(step), None) => step,
        (None, Some(tokens)) => {
            let (first, full) =
                (batch.ramp_from.unwrap_or(batch.micro_batches), batch.micro_batches);
            let ramp = BatchRamp::new(first, full, batch.ramp_steps);
            // A ramp that cannot be is refused elsewhere.
            let ramp = ramp.unwrap_or_else(|_| BatchRamp::constant(full.max(1)));
            let (count, ramped) = (tokens.div_ceil(each), ramp.before(batch.ramp_steps));
            let in_ramp = (0..batch.ramp_steps).find(|&step| ramp.before(step) >= count);
            in_ramp.unwrap_or_else(|| {
                batch.ramp_steps + count.saturating_sub(ramped).div_ceil(ramp.full())
            })
        }
        (step, _) => {
            let found = if step.is_some() { "set beside from_tokens" } else { "not set" };
            let remedy = "set one of from_step and from_tokens";
            problems.require(false, key, found, "does not say where the stage begins", remedy);
            u64::MAX
        }
    }
}
