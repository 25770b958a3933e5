//! LiGO: a larger model as a linear map of a smaller one, which a few steps on the loss learn while
//! the small model stays as it is (Wang et al. 2023, arXiv:2303.00980, eq. 4 to 7 and section 3.3).
//!
//! ```text
//! width of block j    W~_j = B_out W_j A_in^T      A = B / column sums of B
//! depth, by part      W'_l = sum_j w[l, j] W~_j
//! ```
//!
//! Departures from the paper, each for a reason. `A` is normalized where the paper has `A = B`: so
//! one-hot maps give Net2Net, which keeps the function in width. Heads are mixed whole
//! (`B (x) I_H`), for other maps would scramble the pairs that rotary positions turn. With grouped
//! queries the input map of the output projection is that of the queries; keys and values have maps
//! of their own. As in the paper's code old rows of `B` stay one-hot, added rows are learned from
//! the row they copy plus `U(0, 0.03)`, scaled to sum to 1, and so are all rows of `w`; one map of
//! the residual stream is shared by all blocks.

use std::collections::BTreeMap;

use grove_optim::{
    AdamWConfig, Elements, Rule, RuleConfig, Scalars, StateDtype, StateSlice, Working,
};
use tch::{Kind, Tensor};

use super::anatomy::{Anatomy, At, Axis, Linear, NormPlace, Part};
use super::axis::AxisMap;
use super::parts::{NamedModel, Parts, Plane};
use crate::config::DepthGrowth;
use crate::error::Error;
use crate::kernel::view;
use crate::model::config::{DecoderSpec, ModelConfig};
use crate::model::init;
use crate::model::plain::{NamedWeights, PlainModel};

/// Bound of the uniform values that are added to one-hot rows.
pub const NOISE: f64 = 0.03;

/// How a map is learned.
#[derive(Clone, Copy, Debug)]
pub struct Learning {
    /// Steps of AdamW without decay.
    pub steps: u64,
    /// Its learning rate; in the paper that of pre-training.
    pub lr: f64,
    /// Where blocks come from at first: [`DepthGrowth::Stack`] or [`DepthGrowth::Interpolate`].
    pub depth: DepthGrowth,
    /// Bound of what is added to one-hot rows: [`NOISE`], or 0 for the plain operators.
    pub noise: f64,
    /// What random numbers are keyed by.
    pub seed: u64,
}

/// A learned model.
#[derive(Debug)]
pub struct Learned {
    /// The larger model.
    pub model: NamedModel,
    /// Mean loss before each step, in nats.
    pub losses: Vec<f64>,
    /// Tokens trained on.
    pub num_tokens: u64,
}

/// A map of one axis: old rows fixed, added rows learned.
#[derive(Debug)]
struct Mixing {
    /// One-hot rows of old indices, zero rows for added ones. `[new, old]`
    fixed: Tensor,
    /// 1 for added rows. `[new, 1]`
    is_added: Tensor,
    /// Learned; only added rows count. `[new, old]`
    learned: Tensor,
    /// Elements of a block that is mixed whole.
    block: i64,
}

impl Mixing {
    fn new(map: &AxisMap, block: usize, (learning, name): (&Learning, &str)) -> Option<Self> {
        if map.is_identity() {
            return None;
        }
        let (new, old) = (map.new_len() as i64, map.old_len() as i64);
        let one_hot = map.sources().one_hot(old).to_kind(Kind::Float);
        let is_added = map.ordinals().clamp(0, 1).to_kind(Kind::Float).view([new, 1]);
        let learned = noisy_rows(&one_hot, (learning, name));
        let fixed = &one_hot * (1.0 - &is_added);
        Some(Self { fixed, is_added, learned, block: block as i64 })
    }

    /// `B`, what makes new outputs.
    fn output(&self) -> Tensor {
        let mixed = &self.fixed + &self.learned * &self.is_added;
        self.of_elements(mixed)
    }

    /// `A`, what reads new inputs.
    fn input(&self) -> Tensor {
        let mixed = &self.fixed + &self.learned * &self.is_added;
        let sums = mixed.sum_dim_intlist([0i64].as_slice(), true, Kind::Float);
        self.of_elements(mixed / sums)
    }

    fn of_elements(&self, mixed: Tensor) -> Tensor {
        match self.block {
            1 => mixed,
            block => mixed.kron(&Tensor::eye(block, (Kind::Float, mixed.device()))),
        }
    }
}

/// One-hot rows with uniform noise, scaled to sum to 1: a leaf of the graph.
fn noisy_rows(one_hot: &Tensor, (learning, name): (&Learning, &str)) -> Tensor {
    let mut rng = init::generator(learning.seed, &format!("growth/ligo/{name}"));
    let drawn: Vec<f32> = (0..one_hot.numel())
        .map(|_| (learning.noise * init::open_uniform(&mut rng)) as f32)
        .collect();
    let noisy = one_hot + Tensor::from_slice(&drawn).view_as(one_hot);
    let sums = noisy.sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    (noisy / sums).set_requires_grad(true)
}

/// The maps inside one block of the small model.
#[derive(Debug)]
struct BlockMixing {
    hidden: Option<Mixing>,
    queries: Option<Mixing>,
    keys: Option<Mixing>,
    values: Option<Mixing>,
}

/// A small model and the maps of it that are learned.
struct Ligo {
    source: BTreeMap<At, Tensor>,
    old: DecoderSpec,
    anatomy: Anatomy,
    num_layers: usize,
    residual: Option<Mixing>,
    blocks: Vec<BlockMixing>,
    /// `w` of each part of a block, `[L', L]`; none where depth stays.
    depth: BTreeMap<Part, Tensor>,
}

impl Ligo {
    fn new(source: &dyn Parts, target: &ModelConfig, learning: &Learning) -> Self {
        let (old, new) = (source.config().spec(), target.spec());
        let anatomy = Anatomy::new(source.config());
        let parts = anatomy.params().iter().flat_map(|assembly| assembly.parts.clone());
        let weights = parts.map(|at| (at, source.value(at, Plane::Weight).to_kind(Kind::Float)));
        let weights: BTreeMap<At, Tensor> = weights.collect();
        let residual = AxisMap::cyclic(old.hidden_size, new.hidden_size);
        let blocks = (0..old.num_layers).map(|layer| BlockMixing::new(&old, &new, layer, learning));
        let mut depth = BTreeMap::new();
        if new.num_layers != old.num_layers {
            let of_blocks = weights.keys().filter(|at| at.layer == Some(0));
            for part in of_blocks.map(|at| at.part) {
                let one_hot = depth_pattern(old.num_layers, new.num_layers, learning.depth);
                depth.insert(part, noisy_rows(&one_hot, (learning, &format!("depth {part:?}"))));
            }
        }
        Self {
            residual: Mixing::new(&residual, 1, (learning, "residual")),
            blocks: blocks.collect(),
            source: weights,
            anatomy: Anatomy::new(target),
            num_layers: new.num_layers,
            old,
            depth,
        }
    }

    /// All that is learned, in a fixed order.
    fn leaves(&self) -> Vec<Tensor> {
        let of_block = |block: &BlockMixing| -> Vec<Tensor> {
            let maps = [&block.hidden, &block.queries, &block.keys, &block.values];
            maps.into_iter().flatten().map(|mixing| mixing.learned.shallow_clone()).collect()
        };
        let residual = self.residual.iter().map(|mixing| mixing.learned.shallow_clone());
        let depth = self.depth.values().map(Tensor::shallow_clone);
        residual.chain(self.blocks.iter().flat_map(of_block)).chain(depth).collect()
    }

    /// The large model's weights as functions of the leaves, fp32.
    fn weights(&self) -> NamedWeights {
        let mut layers: BTreeMap<Part, Tensor> = BTreeMap::new();
        for part in self.source.keys().filter(|at| at.layer == Some(0)).map(|at| at.part) {
            let wide: Vec<Tensor> = (0..self.old.num_layers)
                .map(|layer| self.widened(At { layer: Some(layer), part }))
                .collect();
            let stacked = Tensor::stack(&wide, 0);
            let deep = match self.depth.get(&part) {
                None => stacked,
                Some(mix) => {
                    let mut shape = stacked.size();
                    let flat = stacked.view([shape[0], -1]);
                    shape[0] = self.num_layers as i64;
                    mix.matmul(&flat).view(shape.as_slice())
                }
            };
            layers.insert(part, deep);
        }
        let value = |at: &At| match at.layer {
            Some(layer) => layers[&at.part].get(layer as i64),
            None => self.widened(*at),
        };
        let params = self.anatomy.params().iter().map(|assembly| {
            let parts: Vec<Tensor> = assembly.parts.iter().map(value).collect();
            (assembly.spec.name.clone(), assembly.assemble(&parts))
        });
        params.collect()
    }

    /// A part of the small model, widened.
    fn widened(&self, at: At) -> Tensor {
        let value = &self.source[&at];
        let (row_axis, column_axis) = at.part.axes();
        let is_counted_twice = matches!(
            at.part,
            Part::NormWeight(NormPlace::Final) | Part::NormBias(NormPlace::Final)
        ) && self.old.tied;
        let rows = match self.mixing(at, row_axis) {
            None => value.shallow_clone(),
            Some(mixing) if is_counted_twice => mixing.input().matmul(value),
            Some(mixing) => mixing.output().matmul(value),
        };
        let Some(mixing) = column_axis.and_then(|axis| self.mixing(at, axis)) else { return rows };
        match at.part {
            Part::Embedding | Part::Positions => rows.matmul(&mixing.output().tr()),
            _ => rows.matmul(&mixing.input().tr()),
        }
    }

    fn mixing(&self, at: At, axis: Axis) -> Option<&Mixing> {
        let block = || &self.blocks[at.layer.expect("heads and neurons are in blocks")];
        match axis {
            Axis::Vocabulary | Axis::Positions | Axis::One => None,
            Axis::Residual => self.residual.as_ref(),
            Axis::Hidden => block().hidden.as_ref(),
            Axis::Queries => block().queries.as_ref(),
            Axis::Keys => match at.part {
                Part::Weight(Linear::Value) | Part::Bias(Linear::Value) => block().values.as_ref(),
                _ => block().keys.as_ref(),
            },
        }
    }
}

impl BlockMixing {
    fn new(old: &DecoderSpec, new: &DecoderSpec, layer: usize, learning: &Learning) -> Self {
        let of = |spec: &DecoderSpec| (spec.num_heads, spec.num_kv_heads);
        let (keys, queries) =
            AxisMap::heads(of(old), of(new)).expect("heads that do not map were refused");
        let hidden = AxisMap::cyclic(old.intermediate_size, new.intermediate_size);
        let mixing = |map: &AxisMap, block, name: &str| {
            Mixing::new(map, block, (learning, &format!("block {layer} {name}")))
        };
        Self {
            hidden: mixing(&hidden, 1, "hidden"),
            queries: mixing(&queries, old.head_dim, "queries"),
            keys: mixing(&keys, old.head_dim, "keys"),
            values: mixing(&keys, old.head_dim, "values"),
        }
    }
}

/// One-hot `[L', L]`.
fn depth_pattern(old: usize, new: usize, depth: DepthGrowth) -> Tensor {
    let sources: Vec<i64> = (0..new)
        .map(|layer| if depth == DepthGrowth::Stack { layer % old } else { layer * old / new })
        .map(|source| source as i64)
        .collect();
    Tensor::from_slice(&sources).one_hot(old as i64).to_kind(Kind::Float)
}

/// Learns the map on `batches` of training tokens and applies it; `target` differs from the source
/// in width, heads and depth only.
///
/// # Shapes
/// - each of `batches`: `[B, S + 1]` i64; `learning.steps` of them are taken
///
/// # Errors
/// What a batch brings instead of tokens.
///
/// Panics if the heads do not map, which [`super::problems`] tells before.
pub fn learn(
    source: &dyn Parts,
    target: &ModelConfig,
    learning: &Learning,
    batches: &mut dyn Iterator<Item = Result<Tensor, Error>>,
) -> Result<Learned, Error> {
    let ligo = Ligo::new(source, target, learning);
    let model = PlainModel::new(target);
    let mut leaves = ligo.leaves();
    let zeros = |leaf: &Tensor| vec![0.0f32; leaf.numel()];
    let mut states: Vec<_> = leaves.iter().map(|leaf| (zeros(leaf), zeros(leaf))).collect();
    let rule = adamw();
    let (mut losses, mut num_tokens) = (Vec::new(), 0);
    for (step, tokens) in (1..=learning.steps).zip(batches) {
        let tokens = tokens?;
        let count = (tokens.size()[0] * (tokens.size()[1] - 1)) as u64;
        num_tokens += count;
        let (loss, grads) = tch::with_grad(|| {
            let loss = model.loss_sum(&ligo.weights(), &tokens) / count as f64;
            let grads = Tensor::run_backward(&[&loss], &leaves, false, false);
            (loss, grads)
        });
        losses.push(loss.double_value(&[]));
        for ((leaf, grad), state) in leaves.iter_mut().zip(&grads).zip(&mut states) {
            update(&rule, (leaf, &grad.contiguous()), state, (step, learning.lr));
        }
    }
    let weights = tch::no_grad(|| ligo.weights());
    Ok(Learned { model: NamedModel::new(target, weights), losses, num_tokens })
}

fn adamw() -> Rule {
    let (beta1, beta2) = (0.9, 0.999);
    let state_dtype = StateDtype::Accumulation;
    let config = AdamWConfig { beta1, beta2, eps: 1e-8, weight_decay: 0.0, state_dtype };
    RuleConfig::AdamW(config).build().expect("these hyper-parameters are in their ranges")
}

fn update(
    rule: &Rule,
    (leaf, grad): (&mut Tensor, &Tensor),
    (first, second): &mut (Vec<f32>, Vec<f32>),
    (step, lr): (u64, f64),
) {
    let elements = Elements {
        master: view::slice_mut::<f32>(leaf),
        grad: view::slice::<f32>(grad),
        state: vec![StateSlice::Values(first), StateSlice::Values(second)],
        working: Working::None,
        first: 0,
    };
    let scalars = Scalars {
        lr,
        weight_decay: 0.0,
        grad_scale: 1.0,
        step,
        averaging_weight: 1.0,
        rounding_seed: 0,
    };
    rule.update(elements, &scalars).expect("buffers of one length");
}
