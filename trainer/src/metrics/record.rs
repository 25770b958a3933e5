//! The records of a run: one per step, one per evaluation; each is one line of `metrics.jsonl`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use grove_parallel::collective::{OperationTotals, StepTotals};
use serde::{Deserialize, Deserializer, Serialize};

use super::trace::UnitSeconds;

/// A part of a step whose time is measured on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for this rank's next batch.
    Data,
    /// Waiting for the gathers of working copies that compute did not hide.
    Gather,
    /// The forward pass of all micro-batches up to the last block.
    Forward,
    /// Final norm, output product and loss, forward and backward in one go.
    Head,
    /// The backward pass of all micro-batches through blocks and embedding.
    Backward,
    /// Waiting for the reduction of gradients that backward did not hide.
    Reduce,
    /// Waiting for a GPU, which runs behind what the other phases queued.
    Device,
    /// The gradient norm, its reduction, and clipping.
    Clip,
    /// The optimizer's update of the masters.
    Optim,
}

impl Phase {
    /// The name in `metrics.jsonl` and in TensorBoard's tags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Gather => "gather",
            Self::Forward => "forward",
            Self::Head => "head",
            Self::Backward => "backward",
            Self::Reduce => "reduce",
            Self::Device => "device",
            Self::Clip => "clip",
            Self::Optim => "optim",
        }
    }
}

/// Seconds of the work that a step is there for, each with what is done to its rows on the way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkSeconds {
    /// Of matrix products, forward and backward; packing, rotation of q and k, bias and residual.
    pub products: f64,
    /// Of attention, forward and backward.
    pub attention: f64,
}

/// How a step went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trip {
    /// The loss or the gradient is not finite.
    NonFinite,
    /// The loss lies far above those before it.
    LossSpike,
    /// The gradient norm lies far above those before it.
    NormSpike,
}

impl Trip {
    /// In words, after "step 3 ".
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::NonFinite => "has a loss or gradient that is not finite",
            Self::LossSpike => "has a loss far above those before it",
            Self::NormSpike => "has a gradient norm far above those before it",
        }
    }
}

/// What one optimizer step reached and cost.
///
/// A value that is not finite is `null` in JSON and is read back as NaN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The optimizer step just done; the first is 1.
    pub step: u64,
    /// Mean cross-entropy over the global batch's valid tokens, in nats.
    #[serde(deserialize_with = "nan_from_null")]
    pub loss: f64,
    /// L2 norm of the whole gradient, before clipping.
    #[serde(deserialize_with = "nan_from_null")]
    pub grad_norm: f64,
    /// Learning rate of this step, before any scale of a parameter group.
    #[serde(deserialize_with = "nan_from_null")]
    pub lr: f64,
    /// Tokens trained on since the run began, this step included, over all ranks.
    pub num_tokens: u64,
    /// Tokens per second of this step, over all ranks.
    #[serde(deserialize_with = "nan_from_null")]
    pub tokens_per_second: f64,
    /// Model FLOPs per second of this step, over all ranks.
    #[serde(deserialize_with = "nan_from_null")]
    pub flops_per_second: f64,
    /// Model FLOPs utilization as a fraction; see [`super::mfu`].
    #[serde(deserialize_with = "nan_from_null")]
    pub mfu: f64,
    /// Wall time of the step on this rank, in seconds.
    #[serde(deserialize_with = "nan_from_null")]
    pub step_seconds: f64,
    /// Seconds that this rank has waited for checkpoints since the last record: for values to be
    /// copied, and for the save before to end. They are not part of a step.
    #[serde(default)]
    pub save_seconds: f64,
    /// Wall time of each measured part of the step on this rank, in seconds.
    pub phases: BTreeMap<Phase, f64>,
    /// Wall time of the kinds of work that a step cannot do without, on this rank's CPU, in seconds;
    /// `None` on a GPU, which works behind the calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_seconds: Option<WorkSeconds>,
    /// The most resident memory this rank's process has held on the host since it began
    /// (`VmHWM`), in bytes.
    pub peak_memory_bytes: u64,
    /// The most memory in use on this rank's GPU at the end of a step, in bytes: what the driver
    /// counts, other processes included. `None` on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_device_memory_bytes: Option<u64>,
    /// Pages that the system has given this rank's process since it began (minor page faults): in the
    /// steady state it stands still, as a step then uses what steps before it have freed.
    #[serde(default)]
    pub pages_given: u64,
    /// Energy of this machine's processors in this step, in joules; `None` where it cannot be
    /// measured.
    pub energy_joules: Option<f64>,
    /// Energy of this machine's GPUs in this step, in joules; `None` on the CPU, or where it cannot
    /// be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_energy_joules: Option<f64>,
    /// Seconds of each phase in each unit, on this rank; only of steps that are profiled.
    #[serde(default, skip_serializing_if = "UnitSeconds::is_empty")]
    pub unit_seconds: UnitSeconds,
    /// What this rank has exchanged with others since the last record.
    #[serde(default)]
    pub communication: Communication,
    /// The most memory of each category on this rank since the run began, in bytes.
    #[serde(default)]
    pub memory_bytes: MemoryByCategory,
    /// Model FLOPs since the run began, this step included, over all ranks.
    #[serde(deserialize_with = "nan_from_null")]
    pub total_flops: f64,
    /// A teacher's part, where one counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distill: Option<Box<DistillRecord>>,
    /// Why the step counts without its update, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Trip>,
}

/// A teacher's part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistillRecord {
    /// Mean divergence from its predictions over the global batch's valid tokens, in nats.
    #[serde(deserialize_with = "nan_from_null")]
    pub loss: f64,
    /// Its weight in the gradient; the cross-entropy has what is left.
    pub weight: f64,
}

/// Calls between ranks, as one rank saw them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Communication {
    /// Seconds that the calls took from their turn to their end, also behind compute.
    pub seconds: f64,
    /// Seconds that this rank waited for them: what compute did not hide.
    pub exposed_seconds: f64,
    /// By operation.
    pub operations: BTreeMap<String, OperationCount>,
}

/// Calls of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationCount {
    /// How many.
    pub calls: u64,
    /// Elements of their larger buffers.
    pub elements: u64,
    /// Bytes of their larger buffers.
    pub bytes: u64,
    /// Bytes that this rank sent: `(N-1)/N` of those, twice that for an all-reduce.
    pub sent_bytes: u64,
}

impl From<&StepTotals> for Communication {
    fn from(totals: &StepTotals) -> Self {
        let operations = totals.by_operation.iter().map(|(name, operation)| {
            let OperationTotals { calls, elements, bytes, sent_bytes } = *operation;
            ((*name).to_owned(), OperationCount { calls, elements, bytes, sent_bytes })
        });
        Self {
            seconds: totals.communication_seconds,
            exposed_seconds: totals.exposed_seconds,
            operations: operations.collect(),
        }
    }
}

/// Bytes by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryByCategory {
    /// Working copies that stay.
    pub parameters: u64,
    /// Master weights, where they are not the working copies.
    pub masters: u64,
    /// Gradient accumulators.
    pub gradients: u64,
    /// The optimizer's state.
    pub optimizer_state: u64,
    /// What waited for its backward at the end of a forward.
    pub activations: u64,
    /// Gathered working copies, gradients on their way, and what travels of parameters that their
    /// rule takes whole.
    pub buffers: u64,
    /// Copies of values that are saved in the background, and of the last good state.
    #[serde(default)]
    pub snapshot: u64,
    /// A teacher's weights, as long as it counts.
    #[serde(default)]
    pub teacher: u64,
}

impl MemoryByCategory {
    /// Each category by its name.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 8] {
        [
            ("parameters", self.parameters),
            ("masters", self.masters),
            ("gradients", self.gradients),
            ("optimizer_state", self.optimizer_state),
            ("activations", self.activations),
            ("buffers", self.buffers),
            ("snapshot", self.snapshot),
            ("teacher", self.teacher),
        ]
    }
}

/// What one evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// The last optimizer step before the evaluation.
    pub step: u64,
    /// Mean cross-entropy over the held-out tokens, in nats.
    #[serde(deserialize_with = "nan_from_null")]
    pub loss: f64,
    /// `exp(loss)`.
    #[serde(deserialize_with = "nan_from_null")]
    pub perplexity: f64,
    /// Bits per byte of held-out text; `None` where the number of bytes is not known.
    pub bits_per_byte: Option<f64>,
    /// Of a mixture the mean cross-entropy of each source that holds tokens out, in nats.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, f64>,
}

/// A step that went wrong and took the run back; the steps after its goal follow once more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewindRecord {
    /// The step that went wrong.
    pub step: u64,
    /// How.
    pub trip: Trip,
    /// Mean loss of its tokens.
    #[serde(deserialize_with = "nan_from_null")]
    pub loss: f64,
    /// L2 norm of its gradient.
    #[serde(deserialize_with = "nan_from_null")]
    pub grad_norm: f64,
    /// The last step of the state that the run went back to.
    pub to_step: u64,
    /// What is left out from now on: the data that this step, from 1, would have seen where nothing
    /// was left out. As in `guard.exclude_steps`.
    pub excluded_step: u64,
}

/// One line of `metrics.jsonl`; the key `kind` says which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "one exists at a time, and nearly all are steps")]
pub enum Record<'a> {
    /// A training step.
    Step(Cow<'a, StepRecord>),
    /// An evaluation.
    Eval(Cow<'a, EvalRecord>),
    /// A way back.
    Rewind(RewindRecord),
}

impl Record<'_> {
    /// The step the record belongs to.
    #[must_use]
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(record) => record.step,
            Self::Eval(record) => record.step,
            Self::Rewind(record) => record.step,
        }
    }
}

/// JSON has no NaN: `serde_json` writes `null`, and this reads it back.
fn nan_from_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
