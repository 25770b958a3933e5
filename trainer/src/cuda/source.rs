//! The sources of the kernels, and their names.

use super::Form;

const ELEMENT: &str = include_str!("element.cu");

/// A kernel; each is there once for each [`Form`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kernel {
    NormForward,
    NormBackward,
    NormWeights,
    Rotary,
    SwigluForward,
    SwigluBackward,
    GeluForward,
    GeluBackward,
    LossAndGrad,
    LossOnly,
    EmbeddingRuns,
    EmbeddingJoins,
}

/// A file of kernels, which is compiled by itself.
#[derive(Debug)]
pub(super) struct Source {
    /// What it is about.
    pub(super) name: &'static str,
    text: &'static str,
    /// What is in it.
    pub(super) kernels: &'static [Kernel],
}

/// All kernels.
pub(super) const SOURCES: &[Source] = &[
    Source {
        name: "norm",
        text: include_str!("norm.cu"),
        kernels: &[Kernel::NormForward, Kernel::NormBackward, Kernel::NormWeights],
    },
    Source { name: "rotary", text: include_str!("rotary.cu"), kernels: &[Kernel::Rotary] },
    Source {
        name: "activation",
        text: include_str!("activation.cu"),
        kernels: &[
            Kernel::SwigluForward,
            Kernel::SwigluBackward,
            Kernel::GeluForward,
            Kernel::GeluBackward,
        ],
    },
    Source {
        name: "cross_entropy",
        text: include_str!("cross_entropy.cu"),
        kernels: &[Kernel::LossAndGrad, Kernel::LossOnly],
    },
    Source {
        name: "embedding",
        text: include_str!("embedding.cu"),
        kernels: &[Kernel::EmbeddingRuns, Kernel::EmbeddingJoins],
    },
];

impl Source {
    /// The whole of it.
    pub(super) fn whole(&self) -> String {
        [ELEMENT, self.text].concat()
    }
}

impl Kernel {
    /// The name of its function for a form.
    pub(super) fn name(self, form: Form) -> String {
        let name = match self {
            Self::NormForward => "norm_forward",
            Self::NormBackward => "norm_backward",
            Self::NormWeights => "norm_weights",
            Self::Rotary => "rotary",
            Self::SwigluForward => "swiglu_forward",
            Self::SwigluBackward => "swiglu_backward",
            Self::GeluForward => "gelu_forward",
            Self::GeluBackward => "gelu_backward",
            Self::LossAndGrad => "loss_and_grad",
            Self::LossOnly => "loss_only",
            Self::EmbeddingRuns => "embedding_runs",
            Self::EmbeddingJoins => "embedding_joins",
        };
        let form = match form {
            Form::Bf16 => "bf16",
            Form::F32 => "f32",
        };
        format!("{name}_{form}")
    }
}
