//! Why a model cannot be grown, all reasons at once.

use std::fmt;
use std::path::PathBuf;

/// A model that cannot be grown into another.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The two do not fit.
    #[error("{} cannot grow into this model:\n{}", .source_name, lines(.problems))]
    Refused {
        /// The model to grow, as named by the user.
        source_name: String,
        /// All that is wrong; never empty.
        problems: Vec<Problem>,
    },
    /// A map is learned by one process, before the run.
    #[error(
        "init.growth.learn_steps is for grove grow: run it, and start from what it writes with \
         init.from alone"
    )]
    LearnedApart,
    /// Tokens to compare on that the smaller model does not know.
    #[error("{from} has token ids above the source's vocab_size = {vocab_size}")]
    NewTokens {
        /// Where they are from.
        from: String,
        /// The ids that it knows.
        vocab_size: usize,
    },
    /// The optimizer's state in the checkpoint cannot be taken over.
    #[error(
        "{} has optimizer state {found}, but optim.rule needs {expected}; use the source's rule, or \
         init.growth.moments = \"fresh\"", .folder.display()
    )]
    States {
        /// The checkpoint.
        folder: PathBuf,
        /// The states that the rule keeps.
        expected: String,
        /// The states that there are.
        found: String,
    },
}

/// One thing that does not fit between a model and what it is to become.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Another family.
    #[error("model.model_type = {target:?}, but the source is {found:?}; families do not map")]
    Family {
        /// The target's.
        target: &'static str,
        /// The source's.
        found: &'static str,
    },
    /// The source is larger.
    #[error("model.{key} = {target} is below the source's {found}; growth never shrinks an axis")]
    Smaller {
        /// The key.
        key: &'static str,
        /// The target's.
        target: usize,
        /// The source's.
        found: usize,
    },
    /// Another width of a head.
    #[error(
        "a head is {target} wide and the source's {found}; keep head_dim and add heads, for rotary \
         frequencies and the scale of attention follow from it"
    )]
    HeadDim {
        /// The target's.
        target: usize,
        /// The source's.
        found: usize,
    },
    /// A parametrization whose multipliers change with the size.
    #[error(
        "model.parametrization scales logits, branches or attention by other factors at the new size, \
         which growth does not undo in the weights; use \"standard\", or the source's sizes"
    )]
    Multipliers,
    /// A residual form that operators do not know.
    #[error(
        "model.residual is not that of Llama and GPT-2 in the source or the target, and growth knows \
         no other; train at the full size from the start"
    )]
    ResidualForm,
    /// Other rotary frequencies without a longer context.
    #[error(
        "model.rope_theta or model.rope_scaling is not the source's, and the context is no longer than \
         its own; keep them, or raise model.max_position_embeddings"
    )]
    Frequencies,
    /// Heads that cannot be copied whole.
    #[error(
        "{target_q} query heads on {target_kv} key heads cannot hold the source's {found_q} on \
         {found_kv}: each key head needs {} queries; use more query heads, or multiples of the \
         source's", .found_q / .found_kv
    )]
    Heads {
        /// The target's query heads.
        target_q: usize,
        /// The target's key heads.
        target_kv: usize,
        /// The source's query heads.
        found_q: usize,
        /// The source's key heads.
        found_kv: usize,
    },
    /// Masks cover the residual stream of models with RMS norms only.
    #[error(
        "model.{key} = {target}, but width = \"random\" keeps the source's {found} under LayerNorm, \
         whose mean and variance over masked channels are no LayerNorm of other weights; keep it, or \
         grow it by \"uneven\" in a stage of its own"
    )]
    MaskedStream {
        /// The key.
        key: &'static str,
        /// The target's.
        target: usize,
        /// The source's.
        found: usize,
    },
    /// Another epsilon beside norms that are otherwise kept.
    #[error(
        "model.{key} = {target}, but width = \"random\" keeps what there was, with the source's {found}; \
         keep it"
    )]
    MaskedEpsilon {
        /// The key.
        key: &'static str,
        /// The target's.
        target: f64,
        /// The source's.
        found: f64,
    },
    /// Added query heads would come between the old ones.
    #[error(
        "width = \"random\" adds heads behind the old ones, which keep {found} query heads a key \
         head, and the model has {target}; add key heads in proportion"
    )]
    MaskedHeads {
        /// The target's queries a key head.
        target: usize,
        /// The source's.
        found: usize,
    },
    /// The epsilon under which the operator is exact is another.
    #[error(
        "model.{key} = {target:?} changes the function: {copies} copies of {old} channels in {new} \
         need {copies} * {old} / {new} * {found:?}; set model.{key} = {expected:?}"
    )]
    Epsilon {
        /// The key.
        key: &'static str,
        /// The target's.
        target: f64,
        /// The source's.
        found: f64,
        /// What it must be.
        expected: f64,
        /// Copies of a channel.
        copies: usize,
        /// The source's channels.
        old: usize,
        /// The target's.
        new: usize,
    },
    /// A head that was its own cannot become the embedding.
    #[error("model.tie_word_embeddings = true, but the source's head is its own; set false")]
    Tied,
    /// More blocks than the operator can add.
    #[error(
        "depth = \"lemon\" adds at most one block after each of the source's {found}, and \
         model.{key} = {target}; use \"zero_insert\", or at most {} blocks", 2 * .found
    )]
    TooDeep {
        /// The key.
        key: &'static str,
        /// The target's blocks.
        target: usize,
        /// The source's.
        found: usize,
    },
    /// Ids mean other tokens.
    #[error(
        "data.tokenizer {target} makes other tokens than the source's {found}; use the source's \
         tokenizer"
    )]
    Tokenizer {
        /// The target's.
        target: String,
        /// The source's.
        found: String,
    },
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(|problem| format!("  {problem}")).collect();
    lines.join("\n")
}

/// Names in a row, for messages.
pub(super) fn listed<T: fmt::Display>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
