//! Which parameters a model has: named as in Hugging Face checkpoints, grouped into units.
//!
//! A unit is what is kept, reduced and gathered together: the embedding, each block, the
//! final norm with the head. Shapes are Hugging Face's own, so that a checkpoint needs no
//! conversion: Llama keeps `[out, in]` matrices apart, GPT-2 keeps `[in, out]` ones and fuses
//! q, k and v (`Conv1D`).

use std::ops::Range;

use grove_optim::Role;

use super::config::{DecoderSpec, ModelConfig, NormKind, Position};

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Independent normal values of mean 0 and this standard deviation.
    Normal(f64),
    /// The same, drawn again where beyond so many deviations.
    TruncatedNormal {
        /// Standard deviation before values beyond the bound are drawn again.
        std: f64,
        /// The bound, in deviations.
        deviations: f64,
    },
    /// Ones on the diagonal of a matrix `[out, in]`, or where it is taller than wide the corner of a
    /// scaled Hadamard matrix (Zhao et al. 2022, arXiv:2110.12661, algorithm 1).
    Identity {
        /// Matrices that lie one below the other, each with its own.
        blocks: usize,
        /// Whether it is stored as `[in, out]`.
        transposed: bool,
    },
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
}

/// One parameter: its checkpoint name, shape, role and initial distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// The name in Hugging Face checkpoints, e.g. `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// The shape in Hugging Face checkpoints.
    pub shape: Vec<i64>,
    /// Which optimizer group the parameter belongs to.
    pub role: Role,
    /// How the parameter starts.
    pub init: Init,
}

/// A unit: parameters that are stored in one flat buffer, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitSpec {
    /// The unit's name in messages, e.g. `block 3`.
    pub name: String,
    /// The parameters in storage order.
    pub params: Vec<ParamSpec>,
    /// Whether the gradient of one micro-batch is a sum of parts (chunks of the head, rows of
    /// tokens), which are added in the accumulation dtype.
    pub gradient_in_parts: bool,
}

/// How a weight matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orientation {
    /// `[out, in]`, `y = x W^T` (Llama).
    OutIn,
    /// `[in, out]`, `y = x W` (GPT-2's `Conv1D`).
    InOut,
}

/// A linear map made of one or several consecutive parameters of a unit, applied as one product.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// Indices of the weights in the unit; several are stacked along the output dim.
    pub weights: Range<usize>,
    /// Index of the bias, if the family has biases.
    pub bias: Option<usize>,
    /// How each weight is stored; stacking needs [`Orientation::OutIn`].
    pub orientation: Orientation,
    /// Whether its products may be of 8-bit numbers; those of the head are too delicate.
    pub may_be_fp8: bool,
}

/// Indices of a norm's parameters in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormIndex {
    /// The weight `[D]`.
    pub weight: usize,
    /// The bias `[D]` (`LayerNorm` only).
    pub bias: Option<usize>,
}

/// Where a block finds its parameters: the same for every block of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockIndex {
    /// The norm before attention.
    pub norm_attention: NormIndex,
    /// x to q, k, v: `(num_heads + 2 num_kv_heads) * head_dim` outputs.
    pub qkv: Projection,
    /// Attention output to the residual stream.
    pub output: Projection,
    /// The norm before the feed-forward part.
    pub norm_mlp: NormIndex,
    /// x to the hidden layer: gate and up (`SwiGLU`), or the one matrix of a GELU layer.
    pub up: Projection,
    /// Hidden layer to the residual stream.
    pub down: Projection,
}

/// The units of a model and the places of a block's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitMap {
    /// Embedding first, then the blocks, then the final norm with the head.
    pub units: Vec<UnitSpec>,
    /// Where each block finds its parameters.
    pub block: BlockIndex,
}

impl UnitMap {
    /// The units of a model in execution order.
    pub fn new(config: &ModelConfig) -> Self {
        let spec = config.spec();
        match config {
            ModelConfig::Llama(_) => llama(&spec),
            ModelConfig::Gpt2(_) => gpt2(&spec),
        }
    }
}

/// Collects the parameters of one unit and hands out their indices.
struct Builder {
    prefix: String,
    params: Vec<ParamSpec>,
}

impl Builder {
    fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), params: Vec::new() }
    }

    fn add(&mut self, name: &str, shape: &[i64], role: Role, init: Init) -> usize {
        let name = format!("{}{name}", self.prefix);
        self.params.push(ParamSpec { name, shape: shape.to_vec(), role, init });
        self.params.len() - 1
    }

    fn norm(&mut self, name: &str, spec: &DecoderSpec) -> NormIndex {
        let shape = [spec.hidden_size as i64];
        let weight = self.add(&format!("{name}.weight"), &shape, Role::Norm, Init::Ones);
        let bias = (spec.norm == NormKind::Layer)
            .then(|| self.add(&format!("{name}.bias"), &shape, Role::Norm, Init::Zeros));
        NormIndex { weight, bias }
    }

    fn finish(self, name: String) -> UnitSpec {
        UnitSpec { name, params: self.params, gradient_in_parts: false }
    }

    fn finish_in_parts(self, name: &str) -> UnitSpec {
        UnitSpec { gradient_in_parts: true, ..self.finish(name.to_owned()) }
    }
}

/// Standard deviations of ordinary matrices and of those that write to the residual stream.
///
/// Writers are divided by `sqrt(2 L)`, so that the stream's variance does not grow with depth
/// (Radford et al. 2019, section 2.3); `L` is the base's depth where the parametrization has one.
fn deviations(spec: &DecoderSpec) -> (Init, Init) {
    let std = spec.initializer_range * spec.scaling.matrix_std();
    (Init::Normal(std), Init::Normal(std / (2.0 * spec.writer_layers as f64).sqrt()))
}

fn llama(spec: &DecoderSpec) -> UnitMap {
    let (plain, writer) = deviations(spec);
    let table = Init::Normal(spec.initializer_range);
    let (d, v) = (spec.hidden_size as i64, spec.vocab_size as i64);
    let mut embedding = Builder::new("model.");
    embedding.add("embed_tokens.weight", &[v, d], Role::Embedding, table);
    let mut units = vec![embedding.finish_in_parts("embedding")];
    let mut block = None;
    for layer in 0..spec.num_layers {
        let mut builder = Builder::new(format!("model.layers.{layer}."));
        block = Some(llama_block(&mut builder, spec, (plain, writer)));
        units.push(builder.finish(format!("block {layer}")));
    }
    let mut head = Builder::new("");
    head.norm("model.norm", spec);
    if !spec.tied {
        head.add("lm_head.weight", &[v, d], Role::Head, table);
    }
    units.push(head.finish_in_parts("head"));
    UnitMap { units, block: block.expect("the config refuses a model without layers") }
}

fn llama_block(b: &mut Builder, spec: &DecoderSpec, (plain, writer): (Init, Init)) -> BlockIndex {
    let (d, f) = (spec.hidden_size as i64, spec.intermediate_size as i64);
    let q = (spec.num_heads * spec.head_dim) as i64;
    let kv = (spec.num_kv_heads * spec.head_dim) as i64;
    let several = |weights| Projection {
        weights,
        bias: None,
        orientation: Orientation::OutIn,
        may_be_fp8: true,
    };
    let norm_attention = b.norm("input_layernorm", spec);
    let first = b.add("self_attn.q_proj.weight", &[q, d], Role::Matrix, plain);
    b.add("self_attn.k_proj.weight", &[kv, d], Role::Matrix, plain);
    let last = b.add("self_attn.v_proj.weight", &[kv, d], Role::Matrix, plain);
    let output = b.add("self_attn.o_proj.weight", &[d, q], Role::Matrix, writer);
    let norm_mlp = b.norm("post_attention_layernorm", spec);
    let gate = b.add("mlp.gate_proj.weight", &[f, d], Role::Matrix, plain);
    let up = b.add("mlp.up_proj.weight", &[f, d], Role::Matrix, plain);
    let down = b.add("mlp.down_proj.weight", &[d, f], Role::Matrix, writer);
    BlockIndex {
        norm_attention,
        qkv: several(first..last + 1),
        output: several(output..output + 1),
        norm_mlp,
        up: several(gate..up + 1),
        down: several(down..down + 1),
    }
}

fn gpt2(spec: &DecoderSpec) -> UnitMap {
    let (plain, writer) = deviations(spec);
    let (d, v) = (spec.hidden_size as i64, spec.vocab_size as i64);
    let Position::Learned { max } = spec.position else {
        unreachable!("ModelConfig::spec gives GPT-2 learned positions")
    };
    let mut embedding = Builder::new("transformer.");
    embedding.add("wte.weight", &[v, d], Role::Embedding, plain);
    embedding.add("wpe.weight", &[max as i64, d], Role::Embedding, plain);
    let mut units = vec![embedding.finish_in_parts("embedding")];
    let mut block = None;
    for layer in 0..spec.num_layers {
        let mut builder = Builder::new(format!("transformer.h.{layer}."));
        block = Some(gpt2_block(&mut builder, spec, (plain, writer)));
        units.push(builder.finish(format!("block {layer}")));
    }
    let mut head = Builder::new("transformer.");
    head.norm("ln_f", spec);
    units.push(head.finish_in_parts("head"));
    UnitMap { units, block: block.expect("the config refuses a model without layers") }
}

fn gpt2_block(b: &mut Builder, spec: &DecoderSpec, (plain, writer): (Init, Init)) -> BlockIndex {
    let (d, f) = (spec.hidden_size as i64, spec.intermediate_size as i64);
    let norm_attention = b.norm("ln_1", spec);
    let qkv = conv1d(b, "attn.c_attn", [d, 3 * d], plain);
    let output = conv1d(b, "attn.c_proj", [d, d], writer);
    let norm_mlp = b.norm("ln_2", spec);
    let up = conv1d(b, "mlp.c_fc", [d, f], plain);
    let down = conv1d(b, "mlp.c_proj", [f, d], writer);
    BlockIndex { norm_attention, qkv, output, norm_mlp, up, down }
}

fn conv1d(b: &mut Builder, name: &str, shape: [i64; 2], init: Init) -> Projection {
    let weight = b.add(&format!("{name}.weight"), &shape, Role::Matrix, init);
    let bias = b.add(&format!("{name}.bias"), &shape[1..], Role::Bias, Init::Zeros);
    Projection {
        weights: weight..weight + 1,
        bias: Some(bias),
        orientation: Orientation::InOut,
        may_be_fp8: true,
    }
}
