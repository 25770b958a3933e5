//! What the parameters of both families are, apart from how a family names, fuses and transposes
//! them: the parts that growth operators know.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::model::config::{DecoderSpec, ModelConfig};
use crate::model::units::{ParamSpec, UnitMap};

/// Which norm of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NormPlace {
    /// Before attention.
    Attention,
    /// Before the MLP.
    Mlp,
    /// Before the head.
    Final,
    /// Before attention's last map.
    AttentionInside,
    /// Before the MLP's last map.
    MlpInside,
    /// Behind the MLP.
    MlpAfter,
}

/// Which number of a residual form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Number {
    /// The factor on attention.
    AttentionGain,
    /// The factor on the MLP.
    MlpGain,
    /// The factor on both.
    Gain,
    /// Added before q, k and v.
    QkvBias,
    /// Added before attention's last map.
    OutputBias,
    /// Added before the hidden layer.
    UpBias,
    /// Added before the activation.
    ActivationBias,
    /// Added before the MLP's last map.
    DownBias,
    /// Added before the head.
    HeadBias,
}

/// Which linear map of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Linear {
    /// Residual stream to queries.
    Query,
    /// Residual stream to keys.
    Key,
    /// Residual stream to values.
    Value,
    /// Attention's result to the residual stream.
    Output,
    /// Residual stream to the gate of a gated MLP.
    Gate,
    /// Residual stream to the hidden layer.
    Up,
    /// Hidden layer to the residual stream.
    Down,
}

/// What a part of a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Token embedding `[V, D]`.
    Embedding,
    /// Learned positions `[P, D]`.
    Positions,
    /// A norm's weight `[D]`.
    NormWeight(NormPlace),
    /// A norm's bias `[D]`.
    NormBias(NormPlace),
    /// A linear map's weight `[out, in]`.
    Weight(Linear),
    /// A linear map's bias `[out]`.
    Bias(Linear),
    /// The head, where it is not the embedding, `[V, D]`.
    Head,
    /// A number of a residual form `[1]`.
    Number(Number),
}

/// What the rows or columns of a part are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Axis {
    /// V token ids.
    Vocabulary,
    /// P positions.
    Positions,
    /// D channels of the residual stream.
    Residual,
    /// N heads of H elements.
    Queries,
    /// K heads of H elements.
    Keys,
    /// F elements inside the MLP.
    Hidden,
    /// One.
    One,
}

impl Axis {
    /// How many there are in a model.
    pub fn len(self, spec: &DecoderSpec) -> usize {
        match self {
            Self::Vocabulary => spec.vocab_size,
            Self::Positions => spec.max_positions,
            Self::Residual => spec.hidden_size,
            Self::Queries => spec.num_heads * spec.head_dim,
            Self::Keys => spec.num_kv_heads * spec.head_dim,
            Self::Hidden => spec.intermediate_size,
            Self::One => 1,
        }
    }
}

impl Part {
    /// The axes of rows and, for a matrix, of columns.
    pub fn axes(self) -> (Axis, Option<Axis>) {
        match self {
            Self::Embedding | Self::Head => (Axis::Vocabulary, Some(Axis::Residual)),
            Self::Positions => (Axis::Positions, Some(Axis::Residual)),
            Self::NormWeight(place) | Self::NormBias(place) => (place.axis(), None),
            Self::Number(_) => (Axis::One, None),
            Self::Weight(linear) => (linear.axes().0, Some(linear.axes().1)),
            Self::Bias(linear) => (linear.axes().0, None),
        }
    }

    /// Whether it writes to the residual stream at the end of a branch.
    pub fn ends_branch(self) -> bool {
        matches!(self, Self::Weight(linear) | Self::Bias(linear) if linear.axes().0 == Axis::Residual)
    }
}

impl NormPlace {
    /// What is normed.
    fn axis(self) -> Axis {
        match self {
            Self::AttentionInside => Axis::Queries,
            Self::MlpInside => Axis::Hidden,
            Self::Attention | Self::Mlp | Self::MlpAfter | Self::Final => Axis::Residual,
        }
    }
}

impl Linear {
    /// The axes of its output and input.
    fn axes(self) -> (Axis, Axis) {
        match self {
            Self::Query => (Axis::Queries, Axis::Residual),
            Self::Key | Self::Value => (Axis::Keys, Axis::Residual),
            Self::Output => (Axis::Residual, Axis::Queries),
            Self::Gate | Self::Up => (Axis::Hidden, Axis::Residual),
            Self::Down => (Axis::Residual, Axis::Hidden),
        }
    }
}

/// A part of a model, with its layer if it is in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The block, from 0.
    pub layer: Option<usize>,
    /// What it is.
    pub part: Part,
}

/// A parameter as it is stored, and the parts that it is made of.
#[derive(Clone, Debug)]
pub struct Assembly {
    /// Name, shape and initial distribution.
    pub spec: ParamSpec,
    /// Its parts, one below the other.
    pub parts: Vec<At>,
    /// Whether the matrix is stored as `[in, out]`.
    pub transposed: bool,
}

/// Where a part lies in its parameter, once that is laid out as `[out, in]`.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    first_row: usize,
    num_rows: usize,
    transposed: bool,
}

/// All parameters of a model, and all its parts.
#[derive(Clone, Debug)]
pub struct Anatomy {
    assemblies: Vec<Assembly>,
    places: BTreeMap<At, Place>,
}

impl Anatomy {
    /// The anatomy of a model.
    pub fn new(config: &ModelConfig) -> Self {
        let spec = config.spec();
        let (mut assemblies, mut places) = (Vec::new(), BTreeMap::new());
        let units = UnitMap::new(config).units;
        let last = units.len() - 1;
        for (index, unit) in units.into_iter().enumerate() {
            let layer = (1..last).contains(&index).then(|| index - 1);
            for param in unit.params {
                let (parts, transposed) = parts_of(&param.name);
                let parts: Vec<At> = parts.iter().map(|&part| At { layer, part }).collect();
                let mut first_row = 0;
                for &at in &parts {
                    let num_rows = at.part.axes().0.len(&spec);
                    let name = param.name.clone();
                    places.insert(at, Place { name, first_row, num_rows, transposed });
                    first_row += num_rows;
                }
                assemblies.push(Assembly { spec: param, parts, transposed });
            }
        }
        Self { assemblies, places }
    }

    /// Every parameter, in storage order.
    pub fn params(&self) -> &[Assembly] {
        &self.assemblies
    }

    /// Whether the model has such a part.
    pub fn has(&self, at: At) -> bool {
        self.places.contains_key(&at)
    }

    /// The name of the parameter that a part lies in.
    ///
    /// Panics if the model has no such part.
    pub fn name(&self, at: At) -> &str {
        &self.place(at).name
    }

    /// A part of its whole parameter, as `[out, in]` or `[out]`.
    ///
    /// Panics if the model has no such part.
    pub fn extract(&self, at: At, param: &Tensor) -> Tensor {
        let place = self.place(at);
        let laid_out =
            if place.transposed && param.dim() == 2 { param.tr() } else { param.shallow_clone() };
        laid_out.narrow(0, place.first_row as i64, place.num_rows as i64).contiguous()
    }

    fn place(&self, at: At) -> &Place {
        self.places.get(&at).unwrap_or_else(|| panic!("the model has no {at:?}"))
    }
}

impl Assembly {
    /// The parameter from its parts, each `[out, in]` or `[out]`.
    pub fn assemble(&self, parts: &[Tensor]) -> Tensor {
        let whole = Tensor::cat(parts, 0);
        let whole = if self.transposed && whole.dim() == 2 { whole.tr() } else { whole };
        whole.contiguous()
    }
}

/// What only some residual forms have.
const FORMS: [(&str, &[Part], bool); 14] = [
    ("attn_sub_norm.weight", &[Part::NormWeight(NormPlace::AttentionInside)], false),
    ("attn_sub_norm.bias", &[Part::NormBias(NormPlace::AttentionInside)], false),
    ("ffn_sub_norm.weight", &[Part::NormWeight(NormPlace::MlpInside)], false),
    ("ffn_sub_norm.bias", &[Part::NormBias(NormPlace::MlpInside)], false),
    ("post_feedforward_layernorm.weight", &[Part::NormWeight(NormPlace::MlpAfter)], false),
    ("residual.attention_gain", &[Part::Number(Number::AttentionGain)], false),
    ("residual.mlp_gain", &[Part::Number(Number::MlpGain)], false),
    ("residual.gain", &[Part::Number(Number::Gain)], false),
    ("residual.qkv_bias", &[Part::Number(Number::QkvBias)], false),
    ("residual.output_bias", &[Part::Number(Number::OutputBias)], false),
    ("residual.up_bias", &[Part::Number(Number::UpBias)], false),
    ("residual.activation_bias", &[Part::Number(Number::ActivationBias)], false),
    ("residual.down_bias", &[Part::Number(Number::DownBias)], false),
    ("residual.head_bias", &[Part::Number(Number::HeadBias)], false),
];

/// The parts of a parameter, and whether it is stored as `[in, out]`.
fn parts_of(name: &str) -> (&'static [Part], bool) {
    use Linear::{Down, Gate, Key, Output, Query, Up, Value};
    use Part::{Bias, Embedding, Head, NormBias, NormWeight, Positions, Weight};
    const TABLE: [(&str, &[Part], bool); 25] = [
        ("model.embed_tokens.weight", &[Embedding], false),
        ("input_layernorm.weight", &[NormWeight(NormPlace::Attention)], false),
        ("self_attn.q_proj.weight", &[Weight(Query)], false),
        ("self_attn.k_proj.weight", &[Weight(Key)], false),
        ("self_attn.v_proj.weight", &[Weight(Value)], false),
        ("self_attn.o_proj.weight", &[Weight(Output)], false),
        ("post_attention_layernorm.weight", &[NormWeight(NormPlace::Mlp)], false),
        ("mlp.gate_proj.weight", &[Weight(Gate)], false),
        ("mlp.up_proj.weight", &[Weight(Up)], false),
        ("mlp.down_proj.weight", &[Weight(Down)], false),
        ("model.norm.weight", &[NormWeight(NormPlace::Final)], false),
        ("lm_head.weight", &[Head], false),
        ("transformer.wte.weight", &[Embedding], false),
        ("transformer.wpe.weight", &[Positions], false),
        ("ln_1.weight", &[NormWeight(NormPlace::Attention)], false),
        ("ln_1.bias", &[NormBias(NormPlace::Attention)], false),
        ("attn.c_attn.weight", &[Weight(Query), Weight(Key), Weight(Value)], true),
        ("attn.c_attn.bias", &[Bias(Query), Bias(Key), Bias(Value)], false),
        ("attn.c_proj.weight", &[Weight(Output)], true),
        ("attn.c_proj.bias", &[Bias(Output)], false),
        ("ln_2.weight", &[NormWeight(NormPlace::Mlp)], false),
        ("ln_2.bias", &[NormBias(NormPlace::Mlp)], false),
        ("mlp.c_fc.weight", &[Weight(Up)], true),
        ("mlp.c_fc.bias", &[Bias(Up)], false),
        ("mlp.c_proj.weight", &[Weight(Down)], true),
    ];
    const LAST: [(&str, &[Part], bool); 3] = [
        ("mlp.c_proj.bias", &[Bias(Down)], false),
        ("transformer.ln_f.weight", &[NormWeight(NormPlace::Final)], false),
        ("transformer.ln_f.bias", &[NormBias(NormPlace::Final)], false),
    ];
    let rows = TABLE.iter().chain(&LAST).chain(&FORMS);
    let found = rows.clone().find(|(suffix, ..)| {
        name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    });
    let (_, parts, transposed) =
        found.unwrap_or_else(|| panic!("{name} is a parameter that growth does not know"));
    (parts, *transposed)
}
