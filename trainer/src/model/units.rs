//! Which parameters a model has: named as in Hugging Face checkpoints, grouped into units.
//!
//! A unit is what is kept, reduced and gathered together: the embedding, each block, the
//! final norm with the head. Shapes are Hugging Face's own, so that a checkpoint needs no
//! conversion: Llama keeps `[out, in]` matrices apart, GPT-2 keeps `[in, out]` ones and fuses
//! q, k and v (`Conv1D`).

use std::ops::Range;

use grove_optim::Role;

use super::config::{BranchGain, DecoderSpec, ModelConfig, NormKind, NormPlacement, Position};

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
    /// Normal values in three matrices of equal shape side by side in one stored as `[in, 3 out]`,
    /// each with its own standard deviation.
    Stacked {
        /// Standard deviations, in order.
        stds: [f64; 3],
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
    /// The weight, as wide as what is normed.
    pub weight: usize,
    /// The bias (`LayerNorm` only).
    pub bias: Option<usize>,
}

/// Where a branch finds what stands around its maps; each of it only in some residual forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BranchIndex {
    /// The norm before the first map.
    pub norm_before: Option<NormIndex>,
    /// The norm before the last map.
    pub norm_inside: Option<NormIndex>,
    /// The norm of the sum with the stream.
    pub norm_after: Option<NormIndex>,
    /// The number added before the first map.
    pub bias_before: Option<usize>,
    /// The number added before the last map.
    pub bias_inside: Option<usize>,
    /// The learned factor; one block's branches may share it.
    pub gain: Option<usize>,
}

/// Where a block finds its parameters: the same for every block of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockIndex {
    /// Around attention's maps.
    pub attention: BranchIndex,
    /// x to q, k, v: `(num_heads + 2 num_kv_heads) * head_dim` outputs.
    pub qkv: Projection,
    /// Attention output to the residual stream.
    pub output: Projection,
    /// Around the feed-forward part's maps.
    pub mlp: BranchIndex,
    /// The number added before the activation.
    pub bias_activation: Option<usize>,
    /// x to the hidden layer: gate and up (`SwiGLU`), or the one matrix of a GELU layer.
    pub up: Projection,
    /// Hidden layer to the residual stream.
    pub down: Projection,
}

/// Where the head finds its parameters in the last unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadIndex {
    /// The norm before the output product.
    pub norm: Option<NormIndex>,
    /// The number added before it.
    pub bias: Option<usize>,
    /// The output matrix, where it is not the embedding.
    pub output: Option<usize>,
}

/// The units of a model and the places of a block's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitMap {
    /// Embedding first, then the blocks, then the final norm with the head: a unit without
    /// parameters where there is no such norm and the head is the embedding.
    pub units: Vec<UnitSpec>,
    /// Where each block finds its parameters.
    pub block: BlockIndex,
    /// Where the head finds its own.
    pub head: HeadIndex,
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
        self.norm_of(name, spec, spec.hidden_size)
    }

    fn norm_of(&mut self, name: &str, spec: &DecoderSpec, width: usize) -> NormIndex {
        let shape = [width as i64];
        let weight = self.add(&format!("{name}.weight"), &shape, Role::Norm, Init::Ones);
        let bias = (spec.norm == NormKind::Layer)
            .then(|| self.add(&format!("{name}.bias"), &shape, Role::Norm, Init::Zeros));
        NormIndex { weight, bias }
    }

    fn scalar(&mut self, name: &str, init: Init) -> usize {
        self.add(&format!("residual.{name}"), &[1], Role::Scalar, init)
    }

    /// The numbers of a block: gains at 1, biases at 0.
    fn block_scalars(&mut self, spec: &DecoderSpec, block: &mut BlockIndex) {
        let form = &spec.residual;
        match form.gain {
            BranchGain::None => {}
            BranchGain::Branch => {
                block.attention.gain = Some(self.scalar("attention_gain", Init::Ones));
                block.mlp.gain = Some(self.scalar("mlp_gain", Init::Ones));
            }
            BranchGain::Block => {
                let gain = Some(self.scalar("gain", Init::Ones));
                (block.attention.gain, block.mlp.gain) = (gain, gain);
            }
        }
        if form.scalar_biases {
            let mut bias = |name| Some(self.scalar(name, Init::Zeros));
            block.attention.bias_before = bias("qkv_bias");
            block.attention.bias_inside = bias("output_bias");
            block.mlp.bias_before = bias("up_bias");
            block.bias_activation = bias("activation_bias");
            block.mlp.bias_inside = bias("down_bias");
        }
    }

    /// The final norm, where there is one.
    fn head(&mut self, norm: &str, spec: &DecoderSpec) -> HeadIndex {
        let norm = spec.residual.has_final_norm().then(|| self.norm(norm, spec));
        HeadIndex { norm, bias: None, output: None }
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
    let mut last = Builder::new("");
    let mut head = last.head("model.norm", spec);
    // The output matrix stays the last parameter of all where there is nothing else.
    head.output = (!spec.tied).then(|| last.add("lm_head.weight", &[v, d], Role::Head, table));
    if spec.residual.scalar_biases {
        head.bias = Some(last.add("model.residual.head_bias", &[1], Role::Scalar, Init::Zeros));
    }
    units.push(last.finish_in_parts("head"));
    UnitMap { units, block: block.expect("the config refuses a model without layers"), head }
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
    let (mut attention, mut mlp) = (BranchIndex::default(), BranchIndex::default());
    let placement = spec.residual.norm;
    let norms_input = matches!(placement, NormPlacement::Pre | NormPlacement::Sub);
    attention.norm_before = norms_input.then(|| b.norm("input_layernorm", spec));
    let first = b.add("self_attn.q_proj.weight", &[q, d], Role::Matrix, plain);
    b.add("self_attn.k_proj.weight", &[kv, d], Role::Matrix, plain);
    let last = b.add("self_attn.v_proj.weight", &[kv, d], Role::Matrix, plain);
    if placement == NormPlacement::Sub {
        let norm = b.norm_of("self_attn.attn_sub_norm", spec, q as usize);
        attention.norm_inside = Some(norm);
    }
    let output = b.add("self_attn.o_proj.weight", &[d, q], Role::Matrix, writer);
    // It stands behind attention in both: before the next branch, or on the sum.
    match placement {
        NormPlacement::None => {}
        NormPlacement::Post => {
            attention.norm_after = Some(b.norm("post_attention_layernorm", spec));
        }
        _ => mlp.norm_before = Some(b.norm("post_attention_layernorm", spec)),
    }
    let gate = b.add("mlp.gate_proj.weight", &[f, d], Role::Matrix, plain);
    let up = b.add("mlp.up_proj.weight", &[f, d], Role::Matrix, plain);
    if placement == NormPlacement::Sub {
        mlp.norm_inside = Some(b.norm_of("mlp.ffn_sub_norm", spec, f as usize));
    }
    let down = b.add("mlp.down_proj.weight", &[d, f], Role::Matrix, writer);
    if placement == NormPlacement::Post {
        mlp.norm_after = Some(b.norm("post_feedforward_layernorm", spec));
    }
    let mut block = BlockIndex {
        attention,
        qkv: several(first..last + 1),
        output: several(output..output + 1),
        mlp,
        bias_activation: None,
        up: several(gate..up + 1),
        down: several(down..down + 1),
    };
    b.block_scalars(spec, &mut block);
    block
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
    let mut last = Builder::new("transformer.");
    let mut head = last.head("ln_f", spec);
    if spec.residual.scalar_biases {
        head.bias = Some(last.scalar("head_bias", Init::Zeros));
    }
    units.push(last.finish_in_parts("head"));
    UnitMap { units, block: block.expect("the config refuses a model without layers"), head }
}

fn gpt2_block(b: &mut Builder, spec: &DecoderSpec, (plain, writer): (Init, Init)) -> BlockIndex {
    let (d, f) = (spec.hidden_size as i64, spec.intermediate_size as i64);
    let (mut attention, mut mlp) = (BranchIndex::default(), BranchIndex::default());
    let placement = spec.residual.norm;
    let norms_input = matches!(placement, NormPlacement::Pre | NormPlacement::Sub);
    attention.norm_before = norms_input.then(|| b.norm("ln_1", spec));
    let qkv = conv1d(b, "attn.c_attn", [d, 3 * d], plain);
    if placement == NormPlacement::Sub {
        attention.norm_inside = Some(b.norm("attn.attn_sub_norm", spec));
    }
    let output = conv1d(b, "attn.c_proj", [d, d], writer);
    // Behind each branch the names are those of the first GPT, whose norms stand there.
    if placement == NormPlacement::Post {
        attention.norm_after = Some(b.norm("ln_1", spec));
    }
    mlp.norm_before = norms_input.then(|| b.norm("ln_2", spec));
    let up = conv1d(b, "mlp.c_fc", [d, f], plain);
    if placement == NormPlacement::Sub {
        mlp.norm_inside = Some(b.norm_of("mlp.ffn_sub_norm", spec, spec.intermediate_size));
    }
    let down = conv1d(b, "mlp.c_proj", [f, d], writer);
    if placement == NormPlacement::Post {
        mlp.norm_after = Some(b.norm("ln_2", spec));
    }
    let mut block = BlockIndex { attention, qkv, output, mlp, bias_activation: None, up, down };
    b.block_scalars(spec, &mut block);
    block
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
