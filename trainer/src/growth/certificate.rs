//! The certificate of a growth: how far the logits and the loss of the grown model are from those
//! of its source, on the same tokens, measured and not claimed.

use serde::Serialize;
use tch::{Kind, Tensor};

use super::parts::{Parts, named_weights};
use crate::config::GrowthPlan;
use crate::model::config::{ModelConfig, Precision};
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

/// What is known of a growth; written as `growth.json` beside the checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Certificate {
    /// The source, as named by the user.
    pub source: String,
    /// One hash over its weights.
    pub source_hash: String,
    /// One hash over the grown masters.
    pub grown_hash: String,
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
pub fn measure(source: &dyn Parts, grown: &dyn Parts, tokens: &Tensor) -> Vec<Measured> {
    [Precision::Fp32, Precision::Bf16]
        .map(|precision| {
            let rounded = |model: &dyn Parts| -> NamedWeights {
                let weights = named_weights(model, Kind::Float);
                match precision {
                    Precision::Bf16 => weights
                        .into_iter()
                        .map(|(name, w)| (name, w.to_kind(Kind::BFloat16).to_kind(Kind::Float)))
                        .collect(),
                    _ => weights,
                }
            };
            let (before, source_loss) = evaluate(source.config(), &rounded(source), tokens);
            let (after, grown_loss) = evaluate(grown.config(), &rounded(grown), tokens);
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
