//! Parametrizations under which hyper-parameters tuned at one size stay right at another: muP over
//! widths (Yang et al. 2022, arXiv:2203.03466, table 8, in the form of Lingle 2024,
//! arXiv:2404.05728) and CompleteP over depths too (Dey et al. 2025, arXiv:2505.01618, table 1 with
//! alpha = 1).
//!
//! With `m` the width and `l` the depth relative to the base, and `h`, `h0` the widths of a head:
//!
//! ```text
//!                     init std           learning rate   weight decay   eps of Adam
//! embedding, head     sigma              lr              wd             eps / m
//! matrices of blocks  sigma / sqrt(m)    lr / m          wd * m         eps / (m l)
//! norms, biases, scalars  1, 0           lr              wd             eps / (m l)
//! ```
//!
//! The learning rate of matrices is for steps whose entries keep their size, as those of Adam and of
//! rules of signs: their spectral norm grows like `m`, and what a matrix does to its input with it.
//! Muon's steps are orthogonal: `sqrt(max(1, outputs / inputs))` of them keep their spectral norm at
//! every width, so the factor is 1; `0.2 sqrt(max(outputs, inputs))` of them grow like `sqrt(m)`, so
//! it is `1 / sqrt(m)` (Yang et al. 2023, arXiv:2310.17813, condition 1). Weight decay has the inverse.
//!
//! Logits are multiplied by `1 / m`, attention's scores by `sqrt(h0) / h` in place of
//! `1 / sqrt(h)`, and what a layer adds to the residual stream by `1 / l`. `l` is 1 under muP. At
//! the base's own size all of it is the standard parametrization. The final norm is in the group
//! of all norms, so its epsilon has the factor `1 / l` too, unlike in the paper.

use grove_optim::Role;
use serde::{Deserialize, Serialize};

/// How initial values, updates and multipliers depend on the size of the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parametrization {
    /// Not at all.
    #[default]
    Standard,
    /// By width.
    Mup,
    /// By width and depth.
    CompleteP,
}

/// What a rule's step on a matrix of a block is like, at one learning rate and every width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixStep {
    /// Its entries keep their size.
    Entries,
    /// Orthogonal, at a spectral norm that depends on the matrix's proportions alone.
    Orthogonal,
    /// Orthogonal, at entries that keep their root mean square.
    OrthogonalAtRms,
}

/// The size of a model relative to the base that its hyper-parameters were tuned at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaling {
    /// `m`: `hidden_size` over the base's.
    pub width: f64,
    /// `l`: blocks over the base's; 1 unless depth counts.
    pub depth: f64,
    /// The factor on attention's scores.
    pub attention: f64,
}

impl Scaling {
    /// The standard parametrization of heads of this width.
    pub fn standard(head_dim: usize) -> Self {
        Self { width: 1.0, depth: 1.0, attention: 1.0 / (head_dim as f64).sqrt() }
    }

    /// The factor on what a layer adds to the residual stream.
    pub fn residual(&self) -> f64 {
        1.0 / self.depth
    }

    /// The factor on the logits.
    pub fn logits(&self) -> f64 {
        1.0 / self.width
    }

    /// The factor on the standard deviation of the matrices of blocks.
    pub fn matrix_std(&self) -> f64 {
        1.0 / self.width.sqrt()
    }

    /// The factor on the learning rate of a role, whose matrices get steps of this kind.
    pub fn lr(&self, role: Role, step: MatrixStep) -> f64 {
        match (role, step) {
            (Role::Matrix, MatrixStep::Entries) => 1.0 / self.width,
            (Role::Matrix, MatrixStep::OrthogonalAtRms) => 1.0 / self.width.sqrt(),
            _ => 1.0,
        }
    }

    /// The factor on the weight decay of a role: with [`Scaling::lr`], a step shrinks weights by
    /// the same part at every width.
    pub fn weight_decay(&self, role: Role, step: MatrixStep) -> f64 {
        1.0 / self.lr(role, step)
    }

    /// The factor on Adam's epsilon of a role.
    pub fn eps(&self, role: Role) -> f64 {
        match role {
            Role::Embedding | Role::Head => 1.0 / self.width,
            Role::Matrix | Role::Norm | Role::Bias | Role::Scalar => {
                1.0 / (self.width * self.depth)
            }
        }
    }
}
