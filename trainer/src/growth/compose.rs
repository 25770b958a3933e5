//! From one configuration to another: which operators are needed, in which order, and what stands
//! against it.

use super::anatomy::{Anatomy, At};
use super::appended::{Appended, keeps_groups};
use super::depth::Depth;
use super::error::{Error, Problem};
use super::moments::Moments;
use super::parts::Parts;
use super::rows::{Rows, Untied};
use super::shape::with_widths;
use super::width::{Width, WidthOptions, copies_and_scale};
use crate::config::{DepthGrowth, GrowthPlan, WidthGrowth};
use crate::model::config::{DecoderSpec, ModelConfig, NormKind, Position};

/// Epsilons closer than this, relatively, are the same: they were written with 16 digits.
const SAME_EPSILON: f64 = 1e-12;

/// What a growth does, as found from the two configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// The head becomes its own.
    pub unties: bool,
    /// Residual stream, MLP or heads grow.
    pub widens: bool,
    /// Blocks are added.
    pub deepens: bool,
    /// Token ids or positions are added.
    pub adds_rows: bool,
    /// Rotary frequencies are others, for a longer context: then the function does not stay.
    pub turns_otherwise: bool,
}

impl Steps {
    /// The steps from one model to another.
    pub fn between(old: &DecoderSpec, new: &DecoderSpec) -> Self {
        let widths = |spec: &DecoderSpec| {
            [spec.hidden_size, spec.intermediate_size, spec.num_heads, spec.num_kv_heads]
        };
        let has_positions = matches!(new.position, Position::Learned { .. });
        Self {
            unties: old.tied && !new.tied,
            widens: widths(old) != widths(new),
            deepens: old.num_layers != new.num_layers,
            turns_otherwise: !has_positions && old.position != new.position,
            adds_rows: old.vocab_size != new.vocab_size
                || has_positions && old.max_positions != new.max_positions,
        }
    }
}

/// The model that `source` becomes, its values computed as they are asked for.
///
/// Untied first, then widened, deepened (so that rows of the next layer are those of the source),
/// then given rows; the optimizer's state is dropped last where it is to be.
///
/// # Errors
/// [`Error::Refused`] with everything that stands against it.
pub fn grow<'a>(
    source: Box<dyn Parts + 'a>,
    target: &ModelConfig,
    plan: &GrowthPlan,
    (source_name, seed): (&str, u64),
) -> Result<Box<dyn Parts + 'a>, Error> {
    let problems = problems(source.config(), target, plan);
    let refused = |problems| Error::Refused { source_name: source_name.to_owned(), problems };
    if !problems.is_empty() {
        return Err(refused(problems));
    }
    let (old, new) = (source.config().spec(), target.spec());
    let steps = Steps::between(&old, &new);
    let mut model = source;
    if steps.unties {
        model = Box::new(Untied::new(model));
    }
    if steps.widens && plan.width == WidthGrowth::Random {
        let config = with_widths(model.config(), target);
        model = Box::new(Appended::new(model, config, seed));
    } else if steps.widens {
        let config = with_widths(model.config(), target);
        let GrowthPlan { width: split, residual, split_std, .. } = *plan;
        let options = WidthOptions { split, residual, split_std, seed };
        let widened = Width::new(model, config, options);
        model = Box::new(widened.ok_or_else(|| refused(vec![heads_problem(&old, &new)]))?);
    }
    if steps.deepens {
        model = Box::new(Depth::new(model, new.num_layers, plan.depth));
    }
    model = Box::new(Rows::new(model, target, seed));
    Ok(Box::new(Moments::new(model, plan.moments)))
}

/// What `grow` does to each parameter, one line a parameter.
pub fn explain(model: &dyn Parts) -> Vec<String> {
    let anatomy = Anatomy::new(model.config());
    let line = |assembly: &super::anatomy::Assembly| {
        let mut notes: Vec<String> = Vec::new();
        for &at in &assembly.parts {
            let mut own = Vec::new();
            model.describe(at, &mut own);
            notes.extend(own.into_iter().filter(|note| !notes.contains(note)).collect::<Vec<_>>());
        }
        let notes = if notes.is_empty() { "as it was".to_owned() } else { notes.join("; ") };
        let steps = first_part(&assembly.parts).map_or(0, |at| model.steps(at));
        format!("{} {:?}: {notes}; {steps} updates", assembly.spec.name, assembly.spec.shape)
    };
    anatomy.params().iter().map(line).collect()
}

fn first_part(parts: &[At]) -> Option<At> {
    parts.first().copied()
}

/// Everything that stands against growing one model into another.
pub fn problems(source: &ModelConfig, target: &ModelConfig, plan: &GrowthPlan) -> Vec<Problem> {
    if source.model_type() != target.model_type() {
        let (target, found) = (target.model_type(), source.model_type());
        return vec![Problem::Family { target, found }];
    }
    let (old, new, keys) = (source.spec(), target.spec(), Keys::of(target));
    if !old.residual.is_plain() || !new.residual.is_plain() {
        return vec![Problem::ResidualForm];
    }
    let steps = Steps::between(&old, &new);
    let mut problems = Vec::new();
    for (key, found, target) in [
        ("vocab_size", old.vocab_size, new.vocab_size),
        (keys.hidden, old.hidden_size, new.hidden_size),
        (keys.intermediate, old.intermediate_size, new.intermediate_size),
        (keys.layers, old.num_layers, new.num_layers),
        (keys.heads, old.num_heads, new.num_heads),
        (keys.kv_heads, old.num_kv_heads, new.num_kv_heads),
        (keys.positions, old.max_positions, new.max_positions),
    ] {
        if target < found
            && !problems.iter().any(|p| matches!(p, Problem::Smaller { key: k, .. } if *k == key))
        {
            problems.push(Problem::Smaller { key, target, found });
        }
    }
    if old.head_dim != new.head_dim {
        problems.push(Problem::HeadDim { target: new.head_dim, found: old.head_dim });
    }
    if steps.turns_otherwise && new.max_positions <= old.max_positions {
        problems.push(Problem::Frequencies);
    }
    if old.head_dim == new.head_dim && old.scaling != new.scaling {
        problems.push(Problem::Multipliers);
    }
    if !old.tied && new.tied {
        problems.push(Problem::Tied);
    }
    if steps.deepens && plan.depth == DepthGrowth::Lemon && new.num_layers > 2 * old.num_layers {
        let (target, found) = (new.num_layers, old.num_layers);
        problems.push(Problem::TooDeep { key: keys.layers, target, found });
    }
    if steps.widens && plan.width == WidthGrowth::Random {
        let (target, found) = (new.hidden_size, old.hidden_size);
        let covers = new.norm == NormKind::Rms || target == found;
        let key = keys.hidden;
        problems.extend((!covers).then_some(Problem::MaskedStream { key, target, found }));
        if old.eps != new.eps {
            let (key, target, found) = (keys.eps, new.eps, old.eps);
            problems.push(Problem::MaskedEpsilon { key, target, found });
        }
        problems.extend((!keeps_groups(&old, &new)).then(|| Problem::MaskedHeads {
            target: new.num_heads / new.num_kv_heads,
            found: old.num_heads / old.num_kv_heads,
        }));
    } else if problems.is_empty() {
        problems.extend(heads_if_wrong(&old, &new));
        problems.extend(epsilon_if_wrong(&old, &new, (keys.eps, plan)));
    }
    problems
}

fn heads_if_wrong(old: &DecoderSpec, new: &DecoderSpec) -> Option<Problem> {
    let heads = |spec: &DecoderSpec| (spec.num_heads, spec.num_kv_heads);
    let mapped = super::axis::AxisMap::heads(heads(old), heads(new));
    mapped.is_none().then(|| heads_problem(old, new))
}

fn heads_problem(old: &DecoderSpec, new: &DecoderSpec) -> Problem {
    Problem::Heads {
        target_q: new.num_heads,
        target_kv: new.num_kv_heads,
        found_q: old.num_heads,
        found_kv: old.num_kv_heads,
    }
}

fn epsilon_if_wrong(
    old: &DecoderSpec,
    new: &DecoderSpec,
    (key, plan): (&'static str, &GrowthPlan),
) -> Option<Problem> {
    let widens = Steps::between(old, new).widens;
    // These do not claim the function.
    if widens && (plan.width == WidthGrowth::Aki || plan.learn_steps > 0) {
        return None;
    }
    let (copies, scale) = copies_and_scale(old.hidden_size, new.hidden_size, plan.residual);
    let (found, target, expected) = (old.eps, new.eps, scale * old.eps);
    let copies = copies as usize;
    let is_wrong = (target - expected).abs() > SAME_EPSILON * expected;
    let (old, new) = (old.hidden_size, new.hidden_size);
    is_wrong.then_some(Problem::Epsilon { key, target, found, expected, copies, old, new })
}

/// A family's keys.
struct Keys {
    hidden: &'static str,
    intermediate: &'static str,
    layers: &'static str,
    heads: &'static str,
    kv_heads: &'static str,
    positions: &'static str,
    eps: &'static str,
}

impl Keys {
    fn of(config: &ModelConfig) -> Self {
        match config {
            ModelConfig::Llama(_) => Self {
                hidden: "hidden_size",
                intermediate: "intermediate_size",
                layers: "num_hidden_layers",
                heads: "num_attention_heads",
                kv_heads: "num_key_value_heads",
                positions: "max_position_embeddings",
                eps: "rms_norm_eps",
            },
            ModelConfig::Gpt2(_) => Self {
                hidden: "n_embd",
                intermediate: "n_inner",
                layers: "n_layer",
                heads: "n_head",
                kv_heads: "n_head",
                positions: "n_positions",
                eps: "layer_norm_epsilon",
            },
        }
    }
}
