//! A decoder-only model: which layers it has and in which units their parameters are. It holds no
//! parameters: whoever runs it passes the unit in question to each call.

use tch::Tensor;

use super::attention::Attention;
use super::block::{Block, Branch, Pass, Recompute};
use super::branch::{Entry, Join};
use super::compute::Compute;
use super::config::{DecoderSpec, ModelConfig, Position};
use super::embedding::{self, Positions};
use super::head::Head;
use super::norm::Norm;
use super::ramp::{Mask, Masks, Ramp, masked};
use super::rope_scaling::frequencies;
use super::rotary::Rotary;
use super::segments::Segments;
use super::units::{BranchIndex, UnitMap, UnitSpec};
use super::views::Weights;
use crate::kernel::cross_entropy::Terms;

/// How a model runs, beside what it is.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Positions in a training sequence; also the most that a forward may see.
    pub sequence_length: usize,
    /// What blocks keep for their backward.
    pub recompute: Recompute,
    /// Rows of logits held at once.
    pub logits_rows: usize,
}

/// A model as a list of layers over units: embedding, blocks, head.
#[derive(Debug)]
pub struct Decoder {
    /// The normalized shape of the model.
    pub spec: DecoderSpec,
    /// All blocks are alike; a block's parameters are in unit `1 + layer`.
    pub block: Block,
    /// Final norm and output.
    pub head: Head,
    /// What blocks keep for their backward.
    pub recompute: Recompute,
    rotary: Option<Rotary>,
    units: Vec<UnitSpec>,
    ramp: Option<Ramp>,
    masks: Option<Masks>,
}

impl Decoder {
    /// The layers of a model.
    pub fn new(compute: &Compute, config: &ModelConfig, options: RunOptions) -> Self {
        let spec = config.spec();
        let UnitMap { units, block, head } = UnitMap::new(config);
        let norm = |index| Norm { kind: spec.norm, eps: spec.eps, share: 1.0, index };
        let rotary = match spec.position {
            Position::Rotary { theta, scaling } => {
                let (pairs, scale) = frequencies(spec.head_dim, theta, scaling.as_ref());
                Some(Rotary::new(compute, &spec, (&pairs, scale), options.sequence_length))
            }
            Position::Learned { .. } => None,
        };
        let head = Head {
            entry: Entry { norm: head.norm.map(norm), bias: head.bias },
            // Tied, the output matrix is the token embedding, parameter 0 of unit 0.
            output: Head::output_at(head.output.unwrap_or(0)),
            rows: options.logits_rows as i64,
            multiplier: spec.scaling.logits(),
            terms: Terms::default(),
            mask: None,
        };
        let branch = |index: BranchIndex| Branch {
            before: Entry { norm: index.norm_before.map(norm), bias: index.bias_before },
            inside: Entry { norm: index.norm_inside.map(norm), bias: index.bias_inside },
            join: Join {
                skip: spec.residual.skip,
                factor: spec.scaling.residual(),
                gain: index.gain,
                norm: index.norm_after.map(norm),
            },
        };
        let block = Block {
            attention: branch(block.attention),
            qkv: block.qkv,
            output: block.output,
            mlp: branch(block.mlp),
            up: block.up,
            down: block.down,
            activated: Entry { norm: None, bias: block.bias_activation },
            activation: spec.mlp,
        };
        Self {
            block,
            head,
            recompute: options.recompute,
            rotary,
            units,
            spec,
            ramp: None,
            masks: None,
        }
    }

    /// With masks that rise over a run's steps, at first as they are after `step` of them.
    #[must_use]
    pub fn with_ramp(mut self, compute: &Compute, ramp: Option<Ramp>, step: u64) -> Self {
        self.ramp = ramp;
        self.mask_at(compute, step);
        self
    }

    /// Sets the masks to what they are after `step` steps.
    pub fn mask_at(&mut self, compute: &Compute, step: u64) {
        self.masks = self.ramp.as_ref().and_then(|ramp| ramp.masks(compute, &self.spec, step));
        let stream = self.masks.as_ref().and_then(|masks| masks.stream.as_ref());
        let share = stream.map_or(1.0, |stream| stream.share);
        self.head.entry = self.head.entry.of_share(share);
        // Masked again, so that a mask folded into the embedding is right for both of its uses.
        let tied = stream.filter(|_| self.spec.tied);
        self.head.mask = tied.map(|stream| stream.mask.shallow_clone());
    }

    /// The mask of the residual stream's channels `[D]`, if they have one.
    pub fn channels(&self) -> Option<&Tensor> {
        let stream = self.masks.as_ref()?.stream.as_ref();
        stream.map(|stream| &stream.mask)
    }

    /// What the first block reads: tokens looked up, with positions, under the stream's mask.
    ///
    /// # Shapes
    /// - `tokens`: `[B, S]` i64; returns `[B * S, D]` in the compute dtype
    pub fn embed(
        &self,
        compute: &Compute,
        weights: &Weights<'_>,
        (tokens, segments): (&Tensor, Option<&Segments>),
    ) -> Tensor {
        let x = embedding::forward(compute, weights, tokens, self.positions(segments));
        masked(&x, self.channels())
    }

    /// Whether something is masked.
    pub fn is_masked(&self) -> bool {
        self.masks.is_some()
    }

    /// A pass through one of the blocks, under its masks.
    pub fn through<'a>(&'a self, pass: &Pass<'a>, layer: usize) -> Pass<'a> {
        Pass { mask: self.masks.as_ref().map_or(Mask::NONE, |masks| masks.of(layer)), ..*pass }
    }

    /// The units in execution order: embedding, blocks, head.
    pub fn units(&self) -> &[UnitSpec] {
        &self.units
    }

    /// Index of the unit that holds the output matrix.
    pub fn output_unit(&self) -> usize {
        if self.spec.tied { 0 } else { self.units.len() - 1 }
    }

    /// Which learned positions the embedding adds.
    pub fn positions<'a>(&self, segments: Option<&'a Segments>) -> Positions<'a> {
        match (self.spec.position, segments) {
            (Position::Rotary { .. }, _) => Positions::None,
            (Position::Learned { .. }, None) => Positions::OfRows,
            (Position::Learned { .. }, Some(segments)) => Positions::OfSegments(segments),
        }
    }

    /// What a micro-batch of this shape, `[B, S]`, brings to the blocks; its rows may be cut.
    pub fn pass<'a>(
        &'a self,
        compute: &'a Compute,
        shape: (i64, i64),
        segments: Option<&'a Segments>,
    ) -> Pass<'a> {
        let attention = Attention::new(&self.spec, shape, segments);
        Pass { compute, attention, rotary: self.rotary.as_ref(), mask: Mask::NONE }
    }
}
