//! What a configuration key is: its type, its conditions and what it means.

/// What a key's value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum Kind {
    /// An integer of at least 0.
    Count,
    /// A finite number.
    Number,
    /// Integers of at least 0.
    Counts,
    /// Two finite numbers.
    Pair,
    /// Two integers of at least 0.
    Range,
    /// True or false.
    Flag,
    /// Any string.
    Text,
    /// A string that names a file to read, relative to the current directory or the config file.
    InputPath,
    /// `"bytes"`, or an input path.
    Tokenizer,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A list of any of these words.
    Words(&'static [&'static str]),
    /// An array of tables, the stages of a run; see [`crate::config::stages`].
    Stages,
    /// Numbers by name.
    Weights,
    /// An array of tables with these keys, whose paths are their names alone.
    Tables(&'static [Key]),
}

/// When a key takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum Applies {
    /// Always.
    Always,
    /// With this `model.model_type`.
    Family(&'static str),
    /// With one of these `optim.rule`s.
    Rule(&'static [&'static str]),
    /// With one of these `schedule.kind`s.
    Schedule(&'static [&'static str]),
    /// With a part of the data kept for validation.
    Validation,
    /// Without `data.sources`, whose tables have keys of their own for this.
    OneSource,
    /// With `data.sources`.
    Mixture,
    /// With a `data.packing` that minds documents.
    Documents,
    /// With `sample.tokens` above 0.
    Sampling,
    /// With samples drawn at random, not by the largest logit.
    RandomSampling,
    /// With one of these `model.parametrization`s.
    Parametrization(&'static [&'static str]),
    /// With this `schedule.mode`.
    Mode(&'static str),
    /// With `schedule.from_step`.
    Phase,
    /// With a weight decay that changes over the steps.
    DecayShape,
    /// With `batch.ramp_steps` above 0.
    Ramp,
    /// Where the model has biases.
    Biases,
    /// Where the head is a parameter of its own.
    OwnHead,
    /// Where the residual form has learned numbers.
    Scalars,
    /// With weight decay at all.
    Decay,
    /// With a model to start from.
    From,
    /// With a teacher.
    Teacher,
    /// With one of these `model.rope_scaling.rope_type`s.
    RopeType(&'static [&'static str]),
    /// With spikes looked for.
    Spikes,
    /// Where a step that goes wrong may not end the run.
    GoesOn,
    /// Where a step that goes wrong may take the run back.
    Rewinds,
}

/// One key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct Key {
    /// The full path, such as `optim.lr`.
    pub(in crate::config) path: &'static str,
    /// The type of its value.
    pub(in crate::config) kind: Kind,
    /// Its conditions; all must hold.
    pub(in crate::config) applies: [Applies; 2],
    /// Whether it must be set where it applies.
    pub(in crate::config) required: bool,
    /// What it means, as a phrase that completes "expected".
    pub(in crate::config) about: &'static str,
}

/// A key that always applies and need not be set.
pub(super) const fn key(path: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { path, kind, applies: [Applies::Always; 2], required: false, about }
}

impl Key {
    /// It must be set where it applies.
    pub(super) const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// It applies under this condition.
    pub(super) const fn only(mut self, first: Applies) -> Self {
        self.applies[0] = first;
        self
    }

    /// And under this one.
    pub(super) const fn and(mut self, second: Applies) -> Self {
        self.applies[1] = second;
        self
    }
}
