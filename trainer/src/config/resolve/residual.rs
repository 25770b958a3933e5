//! The residual form of a model: as written, or as the scheme of its initial values needs it.

use std::fmt::Display;

use super::super::plan::InitScheme;
use super::super::run_config::{Family, ModelTable};
use super::{Problems, Shown};
use crate::model::config::{BranchGain, NormPlacement, ResidualForm};

/// The form of a `[model]` table. A scheme that is made for a form brings it, and refuses keys that
/// say otherwise.
pub(super) fn resolve(
    table: &ModelTable,
    scheme: InitScheme,
    problems: &mut Problems,
) -> ResidualForm {
    let num_layers = match table.model_type {
        Family::Llama => table.num_hidden_layers,
        Family::Gpt2 => table.n_layer,
    };
    let needed = scheme.residual_form(num_layers.unwrap_or(0));
    let written = table.residual.unwrap_or_default();
    let default = needed.unwrap_or_default();
    let form = ResidualForm {
        norm: written.norm.unwrap_or(default.norm),
        gain: written.gain.unwrap_or(default.gain),
        skip: written.skip.unwrap_or(default.skip),
        scalar_biases: written.scalar_biases.unwrap_or(default.scalar_biases),
    };
    if needed.is_some() {
        let mut same = |holds: bool, key: &str, found: &dyn Display, expected: &dyn Display| {
            let scheme = scheme.name();
            problems.require(
                holds,
                &format!("model.residual.{key}"),
                found,
                format!(
                    "is not what init.scheme = {scheme:?} is made for, which brings {expected}"
                ),
                format!("remove model.residual.{key}, or choose another init.scheme"),
            );
        };
        let quoted = |name: &str| format!("{name:?}");
        let norms = [form.norm, default.norm].map(|norm| quoted(norm_name(norm)));
        same(form.norm == default.norm, "norm", &norms[0], &norms[1]);
        let gains = [form.gain, default.gain].map(|gain| quoted(gain_name(gain)));
        same(form.gain == default.gain, "gain", &gains[0], &gains[1]);
        same(form.skip == default.skip, "skip", &Shown(form.skip), &Shown(default.skip));
        let biases = [form.scalar_biases, default.scalar_biases];
        same(biases[0] == biases[1], "scalar_biases", &biases[0], &biases[1]);
    }
    form
}

fn norm_name(norm: NormPlacement) -> &'static str {
    match norm {
        NormPlacement::Pre => "pre",
        NormPlacement::Post => "post",
        NormPlacement::Sub => "sub",
        NormPlacement::None => "none",
    }
}

fn gain_name(gain: BranchGain) -> &'static str {
    match gain {
        BranchGain::None => "none",
        BranchGain::Branch => "branch",
        BranchGain::Block => "block",
    }
}
