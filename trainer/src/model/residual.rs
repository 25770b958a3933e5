//! The form of a model's residual stream: where norms stand, which learned factor a branch has,
//! by how much the stream itself is multiplied, and whether learned numbers are added before layers.
//!
//! With `x` the stream, `f` a branch without its last map `W`, `N`, `M` norms, `a` a learned factor,
//! `k` the constant [`ResidualForm::skip`] and `b`, `c` learned numbers (0 without):
//!
//! ```text
//! pre     y = k x + a W (f(N(x) + b) + c)          and a norm before the head
//! post    y = N(k x + a W (f(x + b) + c))
//! sub     y = k x + a W (M(f(N(x) + b)) + c)       and a norm before the head
//! none    y = k x + a W (f(x + b) + c)
//! ```

use serde::{Deserialize, Serialize};

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// At the beginning of each branch (Xiong et al. 2020, arXiv:2002.04745).
    #[default]
    Pre,
    /// Behind each sum of stream and branch (Vaswani et al. 2017, arXiv:1706.03762); none before
    /// the head, which reads the last of them.
    Post,
    /// At the beginning of each branch and before its last map (Wang et al. 2022, Magneto,
    /// arXiv:2210.06423, section 2.1).
    Sub,
    /// Nowhere.
    None,
}

/// The learned factor of a branch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BranchGain {
    /// None.
    #[default]
    None,
    /// One for each branch (De and Smith 2020, arXiv:2002.10444, section 3.2).
    Branch,
    /// One for each block, shared by its two branches (Bachlechner et al. 2020, arXiv:2003.04887,
    /// section 4).
    Block,
}

/// The form of the residual stream, `[model.residual]`. Its default is that of Llama and GPT-2; no
/// other has a form in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResidualForm {
    /// Where norms stand.
    pub norm: NormPlacement,
    /// Which learned factor a branch has.
    pub gain: BranchGain,
    /// The constant factor on the stream that passes a branch (Wang et al. 2022, DeepNet,
    /// arXiv:2203.00555, section 3: alpha).
    pub skip: f64,
    /// Whether a learned number is added before each linear map and each activation, the head
    /// included (Zhang et al. 2019, Fixup, arXiv:1901.09321, section 3).
    pub scalar_biases: bool,
}

impl Default for ResidualForm {
    fn default() -> Self {
        Self { norm: NormPlacement::Pre, gain: BranchGain::None, skip: 1.0, scalar_biases: false }
    }
}

impl ResidualForm {
    /// Whether it is the form of Llama and GPT-2.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Whether there are parameters of a single number.
    pub fn has_scalars(&self) -> bool {
        self.gain != BranchGain::None || self.scalar_biases
    }

    /// Whether a norm stands before the head.
    pub fn has_final_norm(&self) -> bool {
        matches!(self.norm, NormPlacement::Pre | NormPlacement::Sub)
    }

    /// Parameters of a block beside its linear maps: norms of `norm(width)` parameters, over the
    /// stream and, with sub-norms, over the widths `inner` of the branches' last maps; and scalars.
    pub(super) fn block_parameters(
        &self,
        norm: impl Fn(u64) -> u64,
        (stream, inner): (u64, [u64; 2]),
    ) -> u64 {
        let norms = match self.norm {
            NormPlacement::Pre | NormPlacement::Post => 2 * norm(stream),
            NormPlacement::Sub => 2 * norm(stream) + inner.into_iter().map(norm).sum::<u64>(),
            NormPlacement::None => 0,
        };
        let gains = match self.gain {
            BranchGain::None => 0,
            BranchGain::Branch => 2,
            BranchGain::Block => 1,
        };
        // Before q, k and v; before o; before up; before the activation; before down.
        norms + gains + if self.scalar_biases { 5 } else { 0 }
    }
}
