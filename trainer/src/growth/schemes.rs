//! How initial weights are drawn, by name: each parameter's distribution from its place in the
//! model.
//!
//! Norms start at 1, biases and numbers before layers at 0 in all of them, learned factors of
//! branches at 1 unless said otherwise. `d` is the width of the residual stream, `L` the
//! number of blocks, `l` a block's number from 0.

use super::anatomy::{Anatomy, Assembly, At, Linear, Number, Part};
use crate::config::{InitScheme, Plan};
use crate::model::compute::Compute;
use crate::model::config::{DecoderSpec, ModelConfig};
use crate::model::units::{Init, UnitSpec};
use crate::state::RunState;

/// T-Fixup's factor for stacks of two branches a block (section 3.2 of the paper).
const T_FIXUP_BLOCK: f64 = 0.67;
/// torchtitan cuts the head's values at so many deviations.
const HEAD_CUT: f64 = 3.0;
/// Where the scheme itself does not cut, so far out that it is as if nothing were cut.
const FAR_CUT: f64 = 100.0;

/// Fills a state with the initial values of a plan.
pub fn initialize(plan: &Plan, compute: &Compute, state: &mut RunState) {
    assign(plan.init.scheme, &plan.model, state.units.iter_mut().map(|unit| &mut unit.spec));
    state.initialize(compute, plan.seed);
}

/// Sets the initial distribution of every parameter of a model.
///
/// Panics if `units` are not those of `config`.
pub fn assign<'a>(
    scheme: InitScheme,
    config: &ModelConfig,
    units: impl Iterator<Item = &'a mut UnitSpec>,
) {
    let (spec, anatomy) = (config.spec(), Anatomy::new(config));
    let mut assemblies = anatomy.params().iter();
    for param in units.flat_map(|unit| &mut unit.params) {
        let assembly = assemblies.next().expect("the units are those of the model");
        assert_eq!(assembly.spec.name, param.name, "both list parameters in one order");
        if let Some(init) = init_of(scheme, &spec, assembly) {
            param.init = init;
        }
    }
}

/// The distribution of a matrix; `None` for what stays as it is in a model's units.
fn init_of(scheme: InitScheme, spec: &DecoderSpec, assembly: &Assembly) -> Option<Init> {
    let at = assembly.parts[0];
    if let Part::Number(number) = at.part {
        let is_gain = matches!(number, Number::Gain | Number::AttentionGain | Number::MlpGain);
        let is_silent = matches!(scheme, InitScheme::Skipinit | InitScheme::Rezero);
        return (is_gain && is_silent).then_some(Init::Zeros);
    }
    let (rows, columns) = at.part.axes();
    let (fan_out, fan_in) = (rows.len(spec) as f64, columns?.len(spec) as f64);
    let width = spec.hidden_size as f64;
    let is_table = matches!(at.part, Part::Embedding | Part::Positions);
    match scheme {
        InitScheme::Gpt2 => None,
        InitScheme::Llama => Some(llama(spec, at)),
        // Rows of a table are picked, not summed over: they have no fan.
        InitScheme::Xavier | InitScheme::Kaiming if is_table => None,
        InitScheme::Xavier => Some(Init::Normal((2.0 / (fan_in + fan_out)).sqrt())),
        InitScheme::Kaiming => {
            // Behind the activation half of the square is lost.
            let gain: f64 = if at.part == Part::Weight(Linear::Down) { 2.0 } else { 1.0 };
            Some(Init::Normal((gain / fan_in).sqrt()))
        }
        InitScheme::SmallInit if at.part.ends_branch() => {
            Some(Init::Normal(2.0 / (spec.num_layers as f64 * width.sqrt())))
        }
        InitScheme::SmallInit => Some(Init::Normal((2.0 / (5.0 * width)).sqrt())),
        InitScheme::Zero => Some(match at.part {
            Part::Head | Part::Positions => Init::Zeros,
            part if part.ends_branch() => Init::Zeros,
            _ => Init::Identity { blocks: assembly.parts.len(), transposed: assembly.transposed },
        }),
        _ => of_form(scheme, spec, assembly),
    }
}

/// The schemes that have a residual form of their own.
///
/// In a branch o and down, v and up make its size; q and k decide where to look and a gate how much
/// to let through: these get the plain deviation, as in torchscale and T-Fixup's code.
fn of_form(scheme: InitScheme, spec: &DecoderSpec, assembly: &Assembly) -> Option<Init> {
    let at = assembly.parts[0];
    let (rows, columns) = at.part.axes();
    let (fan_out, fan_in) = (rows.len(spec) as f64, columns?.len(spec) as f64);
    let xavier = (2.0 / (fan_in + fan_out)).sqrt();
    let kaiming = fan_in.sqrt().recip();
    // Blocks, and branches.
    let (depth, branches) = (spec.num_layers as f64, 2.0 * spec.num_layers as f64);
    let (plain, makes_size) = match scheme {
        InitScheme::Fixup if at.part == Part::Head || at.part.ends_branch() => {
            return Some(Init::Zeros);
        }
        // m = 2 matrices a branch: L^(-1 / (2 m - 2)).
        InitScheme::Fixup => (kaiming, branches.powf(-0.5)),
        InitScheme::Skipinit => (kaiming, 1.0),
        InitScheme::TFixup => (xavier, T_FIXUP_BLOCK * depth.powf(-0.25)),
        // beta = (8 M)^(-1/4).
        InitScheme::Deepnorm => (xavier, (8.0 * depth).powf(-0.25)),
        // gamma = sqrt(ln(2 M)).
        InitScheme::Subln => (xavier, branches.ln().sqrt()),
        _ => (xavier, 1.0),
    };
    let std = match at.part {
        Part::Positions => return None,
        Part::Embedding => {
            let small = (spec.hidden_size as f64).powf(-0.5);
            match scheme {
                InitScheme::TFixup => small * (9.0 * depth).powf(-0.25),
                _ if spec.tied => small,
                _ => 1.0,
            }
        }
        Part::Head => plain,
        // q, k and v in one.
        Part::Weight(Linear::Query) if assembly.parts.len() > 1 => {
            return Some(Init::Stacked { stds: [plain, plain, plain * makes_size] });
        }
        Part::Weight(Linear::Query | Linear::Key | Linear::Gate) => plain,
        _ => plain * makes_size,
    };
    Some(Init::Normal(std))
}

/// torchtitan's: `sigma / sqrt(2 (l + 1))` for o, up and down of a gated MLP, `sigma` for the other
/// matrices; head `d^-1/2`, cut at 3 deviations; embedding of deviation 1, unless it is the head.
fn llama(spec: &DecoderSpec, at: At) -> Init {
    let cut = |std: f64, deviations: f64| Init::TruncatedNormal { std, deviations };
    let head = cut((spec.hidden_size as f64).powf(-0.5), HEAD_CUT);
    let sigma = spec.initializer_range;
    let depth = at.layer.map_or(1.0, |layer| (2.0 * (layer + 1) as f64).sqrt());
    let is_gated = spec.mlp == crate::model::config::Mlp::SwiGlu;
    match at.part {
        Part::Head => head,
        Part::Embedding if spec.tied => head,
        Part::Embedding => Init::Normal(1.0),
        Part::Weight(Linear::Output | Linear::Down) => cut(sigma / depth, FAR_CUT),
        Part::Weight(Linear::Up) if is_gated => cut(sigma / depth, FAR_CUT),
        _ => cut(sigma, FAR_CUT),
    }
}
