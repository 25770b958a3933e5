//! Deeper models: blocks copied, or inserted so that they change nothing at first.
//!
//! Stack: Gong et al. 2019 (StackBERT), ICML; Du et al. 2024 (G_stack), arXiv:2405.15319, section 3.
//! Zero-insert: G_zero of the same, and Wang et al. 2023 (LEMON), arXiv:2310.07999, section 4.3.
//! Identity by the norm: Shen et al. 2022 (staged training), arXiv:2203.06211, section 3.2.

use grove_optim::StateKind;
use tch::{Kind, Tensor};

use super::anatomy::{At, Axis, Part};
use super::parts::{Parts, Plane};
use super::shape::with_layers;
use crate::config::DepthGrowth;
use crate::model::config::ModelConfig;

/// What becomes of a block at its new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// It is the block itself.
    Itself,
    /// It is another copy of it.
    Copy,
    /// A copy of it whose branches end in zeros.
    Silent,
    /// The same, with half of its heads and neurons those of the next block.
    SilentMixed,
    /// Norms of zero before identity matrices.
    Identity,
}

/// A model deepened from another.
pub struct Depth<'a> {
    source: Box<dyn Parts + 'a>,
    config: ModelConfig,
    /// For each block the old one it comes from, and how.
    blocks: Vec<(usize, Kept)>,
    old_len: usize,
}

impl<'a> Depth<'a> {
    /// `source` with `num_layers` blocks, at least as many as it has; LEMON's at most twice.
    pub fn new(source: Box<dyn Parts + 'a>, num_layers: usize, how: DepthGrowth) -> Self {
        let old_len = source.config().spec().num_layers;
        let config = with_layers(source.config(), num_layers);
        Self { blocks: plan(old_len, num_layers, how), old_len, source, config }
    }

    fn kept(&self, at: At) -> (At, Kept) {
        let Some(layer) = at.layer else { return (at, Kept::Itself) };
        let (from, kept) = self.blocks[layer];
        (At { layer: Some(from), ..at }, kept)
    }

    /// The second half of the heads or neurons from the next block.
    fn mixed(&self, from: At, value: Tensor, plane: Plane) -> Tensor {
        let spec = self.config.spec();
        let half = match from.part.axes().0 {
            // Whole key heads with all their queries, so that pairs stay together.
            Axis::Queries => {
                spec.num_kv_heads / 2 * (spec.num_heads / spec.num_kv_heads) * spec.head_dim
            }
            Axis::Keys => spec.num_kv_heads / 2 * spec.head_dim,
            Axis::Hidden => spec.intermediate_size / 2,
            _ => return value,
        };
        let layer = from.layer.map(|layer| (layer + 1).min(self.old_len - 1));
        let next = self.source.value(At { layer, ..from }, plane);
        let (half, rows) = (half as i64, value.size()[0]);
        Tensor::cat(&[value.narrow(0, 0, rows - half), next.narrow(0, rows - half, half)], 0)
    }
}

/// Where each new block comes from.
fn plan(old: usize, new: usize, how: DepthGrowth) -> Vec<(usize, Kept)> {
    let spread = |inserted: Kept, first: Kept| {
        let mut blocks: Vec<(usize, Kept)> = Vec::new();
        for layer in 0..new {
            let from = layer * old / new;
            let is_first = blocks.last().is_none_or(|&(last, _)| last != from);
            blocks.push((from, if is_first { first } else { inserted }));
        }
        blocks
    };
    match how {
        DepthGrowth::Stack => (0..new)
            .map(|layer| (layer % old, if layer < old { Kept::Itself } else { Kept::Copy }))
            .collect(),
        DepthGrowth::Interpolate => spread(Kept::Copy, Kept::Itself),
        DepthGrowth::ZeroInsert => spread(Kept::Silent, Kept::Itself),
        DepthGrowth::IdentityInsert => spread(Kept::Identity, Kept::Itself),
        // A silent block after each of the last new - old.
        DepthGrowth::Lemon => (0..old)
            .flat_map(|from| {
                let silent = (from + new >= 2 * old).then_some((from, Kept::SilentMixed));
                std::iter::once((from, Kept::Itself)).chain(silent)
            })
            .collect(),
    }
}

impl Parts for Depth<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn value(&self, at: At, plane: Plane) -> Tensor {
        let (from, kept) = self.kept(at);
        let value = self.source.value(from, plane);
        let is_weight = plane == Plane::Weight;
        match kept {
            Kept::Itself | Kept::Copy => value,
            Kept::Silent | Kept::SilentMixed if is_weight && at.part.ends_branch() => {
                value.zeros_like()
            }
            Kept::Silent if is_weight => value,
            Kept::SilentMixed if is_weight => self.mixed(from, value, plane),
            Kept::Identity if is_weight => identity(at.part, &value),
            // Never seen a gradient, and the counter says so.
            Kept::Silent | Kept::SilentMixed | Kept::Identity => match plane {
                Plane::State(StateKind::BaseIterate) => self.value(at, Plane::Weight),
                _ => value.zeros_like(),
            },
        }
    }

    fn steps(&self, at: At) -> u64 {
        let (from, kept) = self.kept(at);
        match kept {
            Kept::Itself | Kept::Copy => self.source.steps(from),
            Kept::Silent | Kept::SilentMixed | Kept::Identity => 0,
        }
    }

    fn states(&self) -> Vec<StateKind> {
        self.source.states()
    }

    fn describe(&self, at: At, notes: &mut Vec<String>) {
        let (from, kept) = self.kept(at);
        self.source.describe(from, notes);
        let block = from.layer.unwrap_or_default();
        match kept {
            Kept::Itself => {}
            Kept::Copy => notes.push(format!("a copy of block {block}")),
            Kept::Silent | Kept::SilentMixed if at.part.ends_branch() => {
                notes.push("inserted, zero".to_owned());
            }
            Kept::Silent => notes.push(format!("inserted, as in block {block}")),
            Kept::SilentMixed => {
                let next = (block + 1).min(self.old_len - 1);
                notes.push(format!("inserted, half of block {block} and half of block {next}"));
            }
            Kept::Identity => notes.push("inserted, an identity behind a norm of zero".to_owned()),
        }
    }
}

/// Norms 0, matrices identities as far as their shapes go, biases 0: a branch of zeros.
fn identity(part: Part, like: &Tensor) -> Tensor {
    match part {
        Part::Weight(_) => {
            let (rows, columns) = like.size2().expect("weights have two dims");
            Tensor::eye_m(rows, columns, (Kind::Double, like.device()))
        }
        _ => like.zeros_like(),
    }
}
