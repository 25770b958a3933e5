//! The normalized view of a decoder that all families share, with its two accounts: parameters
//! and floating-point operations.
//!
//! Legend: V `vocab_size`, D `hidden_size`, L `num_layers`, N `num_heads`, K `num_kv_heads`,
//! H `head_dim`, F `intermediate_size`, T sequence length.

use crate::model::residual::ResidualForm;
use crate::model::rope_scaling::RopeScaling;
use crate::model::scaling::Scaling;

/// Which normalization a decoder uses before attention, before the MLP and at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps) * weight`; Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    Rms,
    /// `(x - mean) / sqrt(var + eps) * weight + bias`; Ba et al. 2016, arXiv:1607.06450.
    Layer,
}

/// How a decoder knows where a token stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Position {
    /// Rotary embedding of queries and keys; Su et al. 2021, arXiv:2104.09864, eq. 34.
    Rotary {
        /// Base of the frequencies `theta^(-2i/H)`.
        theta: f64,
        /// How the frequencies are scaled for a longer context.
        scaling: Option<RopeScaling>,
    },
    /// A learned row per position, added to the embedding.
    Learned {
        /// Number of rows.
        max: usize,
    },
}

/// The shape of a decoder's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// `down(silu(gate(x)) * up(x))`, three matrices; Shazeer 2020, arXiv:2002.05202, eq. 6.
    SwiGlu,
    /// `proj(gelu_new(fc(x)))`, two matrices, GELU in its tanh form; arXiv:1606.08415.
    Gelu,
}

/// A decoder-only transformer, whichever family it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// V, rows of the embedding and of the head.
    pub vocab_size: usize,
    /// D, width of the residual stream.
    pub hidden_size: usize,
    /// L, number of blocks.
    pub num_layers: usize,
    /// N, query heads per block.
    pub num_heads: usize,
    /// K, key and value heads per block; divides N.
    pub num_kv_heads: usize,
    /// H, width of one head; `N * H` need not be D.
    pub head_dim: usize,
    /// F, width inside the MLP.
    pub intermediate_size: usize,
    /// The normalization.
    pub norm: NormKind,
    /// The normalization's epsilon.
    pub eps: f64,
    /// The position scheme.
    pub position: Position,
    /// The MLP's shape.
    pub mlp: Mlp,
    /// Whether linear layers (but never the head) carry biases.
    pub bias: bool,
    /// Whether the head is the embedding, one parameter used twice.
    pub tied: bool,
    /// The form of the residual stream.
    pub residual: ResidualForm,
    /// The size relative to the base of its parametrization.
    pub scaling: Scaling,
    /// Blocks of the depth that the residual stream's writers are initialized for.
    pub writer_layers: usize,
    /// The longest sequence, in tokens.
    pub max_positions: usize,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
}

impl DecoderSpec {
    /// Entries of the matrices of one block: `D N H + 2 D K H + N H D + m D F`, with m = 3 for
    /// [`Mlp::SwiGlu`] and 2 for [`Mlp::Gelu`].
    pub fn block_matmul_parameters(&self) -> u64 {
        let [d, n, k, h, f] = [
            self.hidden_size,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.intermediate_size,
        ]
        .map(|size| size as u64);
        let mlp_matrices = match self.mlp {
            Mlp::SwiGlu => 3,
            Mlp::Gelu => 2,
        };
        2 * d * n * h + 2 * d * k * h + mlp_matrices * d * f
    }

    /// Number of trained parameters; a tied head counts once.
    ///
    /// Llama, untied: `2 V D + L (matrices + 2 D) + D`. GPT-2: `V D + P D + L (matrices + biases +
    /// 4 D) + 2 D`, biases `N H + 2 K H + D + F + D`. Worked: GPT-2 small (V 50257, P 1024, D 768,
    /// L 12, F 3072) has `38,597,376 + 786,432 + 12 (7,077,888 + 6,912 + 3,072) + 1,536
    /// = 124,439,808`. Another residual form has other norms, and numbers of its own.
    pub fn num_parameters(&self) -> u64 {
        let [v, d, l, n, k, h, f] = [
            self.vocab_size,
            self.hidden_size,
            self.num_layers,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.intermediate_size,
        ]
        .map(|size| size as u64);
        let norm = |width: u64| match self.norm {
            NormKind::Rms => width,
            NormKind::Layer => 2 * width,
        };
        let positions = match self.position {
            Position::Rotary { .. } => 0,
            Position::Learned { max } => max as u64 * d,
        };
        let mlp_biases = match self.mlp {
            Mlp::SwiGlu => 2 * f + d,
            Mlp::Gelu => f + d,
        };
        let biases = if self.bias { n * h + 2 * k * h + d + mlp_biases } else { 0 };
        let around = self.residual.block_parameters(norm, (d, [n * h, f]));
        let block = self.block_matmul_parameters() + biases + around;
        let heads = if self.tied { 1 } else { 2 };
        let last = if self.residual.has_final_norm() { norm(d) } else { 0 };
        heads * v * d + positions + l * block + last + u64::from(self.residual.scalar_biases)
    }

    /// Floating-point operations per trained token, forward and backward:
    /// `6 (L matrices + V D) + 6 L T N H`.
    ///
    /// A matrix costs 2 operations per entry forward and 4 backward; embedding look-ups, norms and
    /// activations are left out. Attention's two products cost `4 T N H` per layer and token
    /// forward if every token saw all T; a causal token sees half on average, so `2 T N H`, times 3
    /// for forward and backward. Recomputation is not counted (this is MFU's numerator, Chowdhery
    /// et al. 2022, arXiv:2204.02311, appendix B, with its attention term halved).
    ///
    /// Worked: GPT-2 small at T = 1024 is `6 (12 * 7077888 + 50257 * 768) + 6 * 12 * 1024 * 768
    /// = 741,192,192 + 56,623,104 = 797,815,296`.
    pub fn flops_per_token(&self, sequence_length: usize) -> u64 {
        let [v, d, l, n, h, t] = [
            self.vocab_size,
            self.hidden_size,
            self.num_layers,
            self.num_heads,
            self.head_dim,
            sequence_length,
        ]
        .map(|size| size as u64);
        6 * (l * self.block_matmul_parameters() + v * d) + 6 * l * t * n * h
    }
}
