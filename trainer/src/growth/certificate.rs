//! The certificate of a growth: how far the logits and the loss of the grown model are from those
//! of its source, on the same tokens, measured and not claimed.

use serde::Serialize;
use tch::{Kind, Tensor};

use super::compose::Steps;
use super::parts::{Parts, named_weights};
use crate::config::GrowthPlan;
use crate::model::config::{ModelConfig, Precision};
use crate::model::folding::Folding;
use crate::model::plain::{NamedWeights, PlainModel};

/// The largest difference of fp32 logits at which an operator that claims to keep the function is
/// believed, beside logits of order 1 to 10; larger logits raise it in proportion.
pub const EXACT_IN_FP32: f64 = 1e-5;

/// What was measured in one precision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The arithmetic, and the rounding of weights before it.
    pub precision: Precision,
    /// Largest difference of a logit of an old token.
    pub max_logit_difference: f64,
    /// Largest logit of the source, for scale.
    pub max_logit: f64,
    /// Mean loss of the source, in nats.
    pub source_loss: f64,
    /// Mean loss of the grown model.
    pub grown_loss: f64,
}

/// What the steps have changed in which a map was learned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LearnedMap {
    /// The steps.
    pub steps: u64,
    /// Tokens that they took.
    pub num_tokens: u64,
    /// Loss of the first step's micro-batch, before it, in nats.
    pub first_loss: f64,
    /// Loss of the last step's, before it.
    pub last_loss: f64,
    /// Mean loss of the model that the operators alone make, without steps, on the tokens of
    /// [`Certificate::tokens`] in fp32; `grown_loss` is that after them.
    pub unlearned_loss: f64,
}

/// What is known of a growth: `growth.json` beside the checkpoint that `grove grow` writes, and
/// `growth-STEP.json` in the folder of a run that has grown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Certificate {
    /// The source, as named by the user.
    pub source: String,
    /// One hash over its weights.
    pub source_hash: String,
    /// One hash over the grown masters, where they were written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grown_hash: Option<String>,
    /// The operators.
    pub operators: GrowthPlan,
    /// What random numbers were keyed by.
    pub seed: u64,
    /// Whether the operators keep the function in real arithmetic, for old tokens.
    pub claims_function: bool,
    /// The difference of fp32 logits up to which the claim holds.
    pub tolerance: f64,
    /// Whether it was reached; false where nothing is claimed.
    pub is_exact: bool,
    /// The tokens: how many, and where from.
    pub tokens: String,
    /// The measurements.
    pub measured: Vec<Measured>,
    /// Where the map was learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learned: Option<LearnedMap>,
}

/// The mean loss of a model in fp32, in nats.
///
/// # Shapes
/// - `tokens`: `[B, S + 1]` i64
pub fn mean_loss(model: &dyn Parts, tokens: &Tensor) -> f64 {
    evaluate(model.config(), &named_weights(model, Kind::Float), tokens).1
}

/// Compares two models on the same sequences, in fp32 and with weights rounded to bf16.
///
/// # Shapes
/// - `tokens`: `[B, S + 1]` i64, ids of the source
///
/// The grown model is compared as `folding` makes it: behind masks as they are at first.
pub fn measure(
    source: &dyn Parts,
    (grown, folding): (&dyn Parts, Option<&Folding>),
    tokens: &Tensor,
) -> Vec<Measured> {
    let config = folding.map_or(grown.config(), |folding| &folding.config);
    [Precision::Fp32, Precision::Bf16]
        .map(|precision| {
            let rounded = |weights: NamedWeights| -> NamedWeights {
                match precision {
                    Precision::Bf16 => weights
                        .into_iter()
                        .map(|(name, w)| (name, w.to_kind(Kind::BFloat16).to_kind(Kind::Float)))
                        .collect(),
                    _ => weights,
                }
            };
            let of_source = rounded(named_weights(source, Kind::Float));
            let (before, source_loss) = evaluate(source.config(), &of_source, tokens);
            drop(of_source);
            let of_grown = rounded(folded(named_weights(grown, Kind::Float), folding));
            let (after, grown_loss) = evaluate(config, &of_grown, tokens);
            let old_ids = before.size()[2];
            let difference = (&before - after.narrow(2, 0, old_ids)).abs().max().double_value(&[]);
            Measured {
                precision,
                max_logit_difference: difference,
                max_logit: before.abs().max().double_value(&[]),
                source_loss,
                grown_loss,
            }
        })
        .to_vec()
}

/// The weights under masks.
fn folded(mut weights: NamedWeights, folding: Option<&Folding>) -> NamedWeights {
    let Some(folding) = folding else { return weights };
    for (name, weight) in &mut weights {
        if let Some(factors) = folding.of(name) {
            *weight = factors.fold(0, &weight.reshape([-1])).view_as(weight);
        }
    }
    weights
}

/// Whether a growth keeps the function in real arithmetic, for old tokens.
pub fn claims_function(source: &ModelConfig, grown: &ModelConfig, growth: &GrowthPlan) -> bool {
    let steps = Steps::between(&source.spec(), &grown.spec());
    !steps.turns_otherwise && growth.keeps_function(steps.deepens, steps.widens)
}

/// Whether measurements bear a claim out.
pub fn is_exact(measured: &[Measured]) -> bool {
    let in_fp32 = measured.iter().filter(|measured| measured.precision == Precision::Fp32);
    in_fp32.clone().all(|m| m.max_logit_difference <= EXACT_IN_FP32 * m.max_logit.max(1.0))
}

/// Logits `[B, S, V]`, and the mean loss.
fn evaluate(config: &ModelConfig, weights: &NamedWeights, tokens: &Tensor) -> (Tensor, f64) {
    let _no_graph = tch::no_grad_guard();
    let model = PlainModel::new(config);
    let length = tokens.size()[1] - 1;
    let logits = model.logits(weights, &tokens.narrow(1, 0, length));
    let targets = tokens.narrow(1, 1, length).reshape([-1]);
    let vocabulary = logits.size()[2];
    let loss = logits.view([-1, vocabulary]).cross_entropy_for_logits(&targets);
    (logits, loss.double_value(&[]))
}

impl Certificate {
    /// What was measured and what follows, in lines.
    pub fn lines(&self) -> Vec<String> {
        let measured = self.measured.iter().map(|m| {
            let precision = if m.precision == Precision::Bf16 { "bf16" } else { "fp32" };
            format!(
                "{precision}: logits differ by {:.3e} at most (of up to {:.2}); loss {:.6} -> {:.6} \
                 ({:+.3e}), on {}",
                m.max_logit_difference,
                m.max_logit,
                m.source_loss,
                m.grown_loss,
                m.grown_loss - m.source_loss,
                self.tokens
            )
        });
        let map = self.learned.map(|LearnedMap { steps, unlearned_loss, .. }| {
            let fp32 = self.measured.iter().find(|m| m.precision == Precision::Fp32);
            let after = fp32.map_or(f64::NAN, |m| m.grown_loss);
            format!(
                "the map: loss {unlearned_loss:.6} by the operators alone -> {after:.6} after \
                 {steps} steps"
            )
        });
        let verdict = match (self.claims_function, self.is_exact) {
            (true, true) => "the function is kept",
            (true, false) => "the function was to be kept and IS NOT",
            (false, _) => "these operators do not keep the function: this is the jump",
        };
        measured.chain(map).chain([verdict.to_owned()]).collect()
    }
}
