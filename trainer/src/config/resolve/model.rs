//! The model: defaults of both families, and the rules of its architecture under their full keys.

use super::super::error::ConfigError;
use super::super::plan::InitScheme;
use super::super::run_config::{Family, ModelTable, RopeTable};
use super::{Problems, residual};
use crate::model::config::{
    Gpt2Config, LlamaConfig, ModelConfig, ModelConfigError, Parametrization, ResidualForm,
    default_head_dim,
};
use crate::model::rope_scaling::{BETAS, RopeScaling};

/// The model of a `[model]` table, or `None` if its sizes do not even determine one.
///
/// The scheme that draws its initial values may bring a residual form.
pub(super) fn resolve(
    table: &ModelTable,
    scheme: InitScheme,
    sequence_length: usize,
    problems: &mut Problems,
) -> Option<ModelConfig> {
    let form = residual::resolve(table, scheme, problems);
    let model = match table.model_type {
        Family::Llama => llama(table, form, sequence_length),
        Family::Gpt2 => Ok(gpt2(table, form, sequence_length)),
    };
    let model = match model {
        Ok(model) => model,
        Err(problem) => {
            problems.0.push(under_model(problem));
            return None;
        }
    };
    check_base(table, problems);
    check_rope(table, problems);
    let found = model.problems();
    let is_sound = found.is_empty();
    problems.0.extend(found.into_iter().map(under_model));
    problems.require(
        table.model_type == Family::Llama || table.tie_word_embeddings != Some(false),
        "model.tie_word_embeddings",
        false,
        "is not possible with model.model_type = \"gpt2\", whose head is its embedding",
        "remove it or set true",
    );
    let max_positions = model.spec().max_positions;
    let positions_key = match model {
        ModelConfig::Llama(_) => "model.max_position_embeddings",
        ModelConfig::Gpt2(_) => "model.n_positions",
    };
    problems.require(
        sequence_length <= max_positions,
        "batch.sequence_length",
        sequence_length,
        format!("is above {positions_key} = {max_positions}"),
        format!("shorten the sequences, or set {positions_key} to {sequence_length} or more"),
    );
    is_sound.then_some(model)
}

fn llama(
    table: &ModelTable,
    residual: ResidualForm,
    sequence_length: usize,
) -> Result<ModelConfig, ModelConfigError> {
    let hidden_size = table.hidden_size.unwrap_or(0);
    let num_attention_heads = table.num_attention_heads.unwrap_or(0);
    let head_dim = match table.head_dim {
        Some(head_dim) => head_dim,
        None => default_head_dim(hidden_size, num_attention_heads)?,
    };
    let scales = table.parametrization.unwrap_or_default() != Parametrization::Standard;
    Ok(ModelConfig::Llama(LlamaConfig {
        vocab_size: table.vocab_size,
        hidden_size,
        intermediate_size: table.intermediate_size.unwrap_or(0),
        num_hidden_layers: table.num_hidden_layers.unwrap_or(0),
        num_attention_heads,
        num_key_value_heads: table.num_key_value_heads.unwrap_or(num_attention_heads),
        head_dim,
        max_position_embeddings: table.max_position_embeddings.unwrap_or(sequence_length),
        rms_norm_eps: table.rms_norm_eps.unwrap_or(1e-5),
        rope_theta: table.rope_theta.unwrap_or(10_000.0),
        rope_scaling: table.rope_scaling.as_ref().and_then(rope_scaling),
        tie_word_embeddings: table.tie_word_embeddings.unwrap_or(false),
        initializer_range: table.initializer_range.unwrap_or(0.02),
        residual,
        parametrization: table.parametrization.unwrap_or_default(),
        base_hidden_size: table.base_hidden_size,
        base_head_dim: scales.then(|| table.base_head_dim.unwrap_or(head_dim)),
        base_num_hidden_layers: table.base_num_hidden_layers,
    }))
}

/// Refuses a parametrization without the size that it is relative to.
fn check_base(table: &ModelTable, problems: &mut Problems) {
    let (needs, shown) = match table.parametrization.unwrap_or_default() {
        Parametrization::Standard => return,
        Parametrization::Mup => (&[("base_hidden_size", table.base_hidden_size)][..], "\"mup\""),
        Parametrization::CompleteP => (
            &[
                ("base_hidden_size", table.base_hidden_size),
                ("base_num_hidden_layers", table.base_num_hidden_layers),
            ][..],
            "\"complete_p\"",
        ),
    };
    for (key, value) in needs {
        problems.require(
            value.is_some(),
            "model.parametrization",
            shown,
            format!("needs model.{key}, of the model that the hyper-parameters were tuned at"),
            format!("set model.{key}"),
        );
    }
}

/// The scaling of a table that has all it needs; what is missing is told by [`check_rope`].
fn rope_scaling(table: &RopeTable) -> Option<RopeScaling> {
    let factor = table.factor?;
    match table.rope_type.as_deref()? {
        "yarn" => Some(RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: table.original_max_position_embeddings?,
            beta_fast: table.beta_fast.unwrap_or(BETAS.0),
            beta_slow: table.beta_slow.unwrap_or(BETAS.1),
        }),
        _ => Some(RopeScaling::Linear { factor }),
    }
}

/// Refuses a scaling without its numbers.
fn check_rope(table: &ModelTable, problems: &mut Problems) {
    let Some(rope) = &table.rope_scaling else { return };
    let Some(rope_type) = &rope.rope_type else { return };
    let original = rope.original_max_position_embeddings;
    for (key, is_there) in [
        ("factor", rope.factor.is_some()),
        ("original_max_position_embeddings", original.is_some() || rope_type != "yarn"),
    ] {
        problems.require(
            is_there,
            "model.rope_scaling.rope_type",
            format!("{rope_type:?}"),
            format!("needs model.rope_scaling.{key}"),
            format!("set model.rope_scaling.{key}"),
        );
    }
}

fn gpt2(table: &ModelTable, residual: ResidualForm, sequence_length: usize) -> ModelConfig {
    let n_embd = table.n_embd.unwrap_or(0);
    ModelConfig::Gpt2(Gpt2Config {
        vocab_size: table.vocab_size,
        n_positions: table.n_positions.unwrap_or(sequence_length),
        n_embd,
        n_layer: table.n_layer.unwrap_or(0),
        n_head: table.n_head.unwrap_or(0),
        n_inner: table.n_inner.unwrap_or(n_embd.saturating_mul(4)),
        layer_norm_epsilon: table.layer_norm_epsilon.unwrap_or(1e-5),
        initializer_range: table.initializer_range.unwrap_or(0.02),
        residual,
    })
}

fn under_model(problem: ModelConfigError) -> ConfigError {
    match problem {
        ModelConfigError::Invalid { key, found, problem, remedy } => {
            ConfigError::Invalid { key: format!("model.{key}"), found, problem, remedy }
        }
        other => ConfigError::Invalid {
            key: "model".to_owned(),
            found: "as written".to_owned(),
            problem: format!("is refused: {other}"),
            remedy: "see configs/reference.toml".to_owned(),
        },
    }
}
