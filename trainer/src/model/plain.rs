//! The same model as one function of its weights, in ordinary autograd operations.
//!
//! Slower and larger than the layers beside it, it serves where derivatives of derivatives or
//! weights that are themselves computed are needed, and as an independent check of every backward.

use std::collections::BTreeMap;

use tch::Tensor;

use super::config::{DecoderSpec, Mlp, ModelConfig, Position};
use super::rope_scaling::frequencies;
use super::segments::Segments;
use super::units::{
    BlockIndex, BranchIndex, HeadIndex, NormIndex, Orientation, Projection, UnitMap, UnitSpec,
};

/// A model whose weights are arguments.
#[derive(Debug)]
pub struct PlainModel {
    spec: DecoderSpec,
    units: Vec<UnitSpec>,
    block: BlockIndex,
    head: HeadIndex,
}

/// The parameters by name; gradients flow to those that require them.
pub type NamedWeights = BTreeMap<String, Tensor>;

impl PlainModel {
    /// The function that belongs to a model's config.
    pub fn new(config: &ModelConfig) -> Self {
        let UnitMap { units, block, head } = UnitMap::new(config);
        Self { spec: config.spec(), units, block, head }
    }

    /// Logits of every position.
    ///
    /// # Shapes
    /// - `tokens`: `[B, S]` i64; returns `[B, S, V]` in the weights' dtype
    pub fn logits(&self, weights: &NamedWeights, tokens: &Tensor) -> Tensor {
        let (b, s) = tokens.size2().expect("tokens are [B, S]");
        self.logits_in_segments(weights, tokens, &Segments::new(tokens.device(), (b, s), &[]))
    }

    /// Logits of every position, none of which sees another segment.
    ///
    /// # Shapes
    /// - As [`PlainModel::logits`]; `segments` are those of `[B, S]`
    pub fn logits_in_segments(
        &self,
        weights: &NamedWeights,
        tokens: &Tensor,
        segments: &Segments,
    ) -> Tensor {
        let embedding = &self.units[0].params;
        let table = &weights[&embedding[0].name];
        let mut x = Tensor::embedding(table, tokens, -1, false, false);
        if let Position::Learned { .. } = self.spec.position {
            let (_, s) = tokens.size2().expect("tokens are [B, S]");
            let rows = weights[&embedding[1].name].index_select(0, segments.position_ids());
            x += rows.view([-1, s, self.spec.hidden_size as i64]);
        }
        let blocks = &self.units[1..self.units.len() - 1];
        for unit in blocks {
            x = self.block(&Named { unit, weights }, &x, segments);
        }
        let unit = &self.units[self.units.len() - 1];
        let named = Named { unit, weights };
        let h = self.entry(&named, (self.head.norm, self.head.bias), &x);
        let output = self.head.output.map_or(table, |output| named.get(output));
        (h * self.spec.scaling.logits()).matmul(&output.tr())
    }

    /// The summed cross-entropy of `tokens[:, 1..]` given what precedes each.
    ///
    /// # Shapes
    /// - `tokens`: `[B, S + 1]` i64; returns a scalar
    pub fn loss_sum(&self, weights: &NamedWeights, tokens: &Tensor) -> Tensor {
        let length = tokens.size()[1] - 1;
        let targets = tokens.narrow(1, 1, length).reshape([-1]);
        self.loss_sum_in_segments(weights, (&tokens.narrow(1, 0, length), &targets), None)
    }

    /// The summed cross-entropy of the targets that count, in rows that may be cut.
    ///
    /// # Shapes
    /// - `inputs`: `[B, S]` i64, `targets`: `[B * S]` i64, -100 for none; returns a scalar
    pub fn loss_sum_in_segments(
        &self,
        weights: &NamedWeights,
        (inputs, targets): (&Tensor, &Tensor),
        segments: Option<&Segments>,
    ) -> Tensor {
        let logits = match segments {
            None => self.logits(weights, inputs),
            Some(segments) => self.logits_in_segments(weights, inputs, segments),
        };
        let no_class_weights = None::<&Tensor>;
        logits.view([-1, self.spec.vocab_size as i64]).cross_entropy_loss(
            targets,
            no_class_weights,
            tch::Reduction::Sum,
            -100,
            0.0,
        )
    }

    fn block(&self, named: &Named<'_>, x: &Tensor, segments: &Segments) -> Tensor {
        let branch = self.block.attention;
        let h = self.entry(named, (branch.norm_before, branch.bias_before), x);
        let attended = self.attention(&named.project(&self.block.qkv, &h), segments);
        let o = self.entry(named, (branch.norm_inside, branch.bias_inside), &attended);
        let x = self.join(named, branch, x, named.project(&self.block.output, &o));
        let branch = self.block.mlp;
        let h = self.entry(named, (branch.norm_before, branch.bias_before), &x);
        let up = named.project(&self.block.up, &h);
        let up = self.entry(named, (None, self.block.bias_activation), &up);
        let act = match self.spec.mlp {
            Mlp::SwiGlu => {
                let halves = up.chunk(2, -1);
                halves[0].silu() * &halves[1]
            }
            Mlp::Gelu => up.gelu("tanh"),
        };
        let o = self.entry(named, (branch.norm_inside, branch.bias_inside), &act);
        self.join(named, branch, &x, named.project(&self.block.down, &o))
    }

    /// What stands before a layer.
    fn entry(
        &self,
        named: &Named<'_>,
        (norm, bias): (Option<NormIndex>, Option<usize>),
        x: &Tensor,
    ) -> Tensor {
        let h = norm.map_or_else(|| x.shallow_clone(), |norm| self.norm(named, norm, x));
        bias.map_or_else(|| h.shallow_clone(), |bias| &h + named.get(bias))
    }

    /// The stream behind a branch.
    fn join(&self, named: &Named<'_>, index: BranchIndex, x: &Tensor, branch: Tensor) -> Tensor {
        let branch = branch * self.spec.scaling.residual();
        let branch = match index.gain {
            Some(gain) => branch * named.get(gain),
            None => branch,
        };
        let sum = x * self.spec.residual.skip + branch;
        match index.norm_after {
            Some(norm) => self.norm(named, norm, &sum),
            None => sum,
        }
    }

    fn norm(&self, named: &Named<'_>, index: NormIndex, x: &Tensor) -> Tensor {
        let (weight, eps) = (named.get(index.weight), self.spec.eps);
        let shape = weight.size();
        match index.bias {
            Some(bias) => x.layer_norm(shape, Some(weight), Some(named.get(bias)), eps, false),
            None => {
                let scale = (x.square().mean_dim([-1i64].as_slice(), true, x.kind()) + eps).rsqrt();
                x * scale * weight
            }
        }
    }

    fn attention(&self, qkv: &Tensor, segments: &Segments) -> Tensor {
        let (n, k) = (self.spec.num_heads as i64, self.spec.num_kv_heads as i64);
        let (b, s, _) = qkv.size3().expect("qkv is [B, S, width]");
        let heads = qkv.view([b, s, n + 2 * k, self.spec.head_dim as i64]).transpose(1, 2);
        let part = |first, count| heads.narrow(1, first, count);
        let (mut q, mut keys, values) = (part(0, n), part(n, k), part(n + k, k));
        if let Position::Rotary { theta, scaling } = self.spec.position {
            let positions = segments.position_ids().view([b, 1, s]);
            let turns = frequencies(self.spec.head_dim, theta, scaling.as_ref());
            (q, keys) = (rotate(&q, &positions, &turns), rotate(&keys, &positions, &turns));
        }
        let spread = |t: &Tensor| t.repeat_interleave_self_int(n / k, 1, None);
        let scores = q.matmul(&spread(&keys).transpose(2, 3)) * self.spec.scaling.attention;
        let hidden = segments.hidden();
        let weights = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, q.kind());
        weights.matmul(&spread(&values)).transpose(1, 2).reshape([b, s, -1])
    }
}

/// One unit's parameters by index.
struct Named<'a> {
    unit: &'a UnitSpec,
    weights: &'a NamedWeights,
}

impl<'a> Named<'a> {
    fn get(&self, index: usize) -> &'a Tensor {
        &self.weights[&self.unit.params[index].name]
    }

    fn project(&self, projection: &Projection, x: &Tensor) -> Tensor {
        let parts: Vec<_> = projection.weights.clone().map(|index| self.get(index)).collect();
        let matrix = match projection.orientation {
            Orientation::OutIn => Tensor::cat(&parts, 0).tr(),
            Orientation::InOut => parts[0].shallow_clone(),
        };
        let y = x.matmul(&matrix);
        match projection.bias {
            Some(bias) => y + self.get(bias),
            None => y,
        }
    }
}

/// Rotates heads `[B, N, S, H]` by the angles of their positions `[B, 1, S]`, with complex numbers rather than the
/// half-split products of the layers beside.
fn rotate(heads: &Tensor, positions: &Tensor, (frequencies, scale): &(Vec<f64>, f64)) -> Tensor {
    let (kind, device) = (heads.kind(), heads.device());
    let frequencies = Tensor::from_slice(frequencies).to_device(device).to_kind(kind);
    let angles = positions.to_kind(kind).unsqueeze(-1) * frequencies;
    let turns = Tensor::polar(&angles.full_like(*scale), &angles);
    let pairs = heads.chunk(2, -1);
    let turned = Tensor::complex(&pairs[0], &pairs[1]) * turns;
    Tensor::cat(&[turned.real(), turned.imag()], -1)
}
