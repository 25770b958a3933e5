//! Growth behind masks that rise: exact at 0, the plain model at 1, and in between the gradient of
//! autograd in f64; then runs of the program.

mod runs;

use std::collections::BTreeMap;

use grove::config::{DepthGrowth, GrowthPlan, WidthGrowth};
use grove::growth::{NamedModel, grow, named_weights};
use grove::model::block::Recompute;
use grove::model::config::ModelConfig;
use grove::model::folding::Folding;
use grove::model::plain::{NamedWeights, PlainModel};
use grove::model::ramp::Ramp;
use grove::pass::{Tokens, logits};
use grove::rules::Rules;
use tch::{Kind, Tensor};

use crate::fixture::{Fixture, Subject, adamw, alone, by_name, relative_error};

/// Sums of a few hundred products in f64.
const TOLERANCE: f64 = 1e-12;
/// The same through a backward.
const GRADIENT_TOLERANCE: f64 = 1e-10;
const STEPS: u64 = 8;

/// How a fixture's model grows.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// The fixture.
    name: &'static str,
    depth: DepthGrowth,
    width: WidthGrowth,
    /// Blocks of the larger model.
    num_layers: usize,
    /// Channels that the residual stream gets.
    channels: usize,
}

impl Case {
    const fn new(name: &'static str, depth: DepthGrowth, num_layers: usize) -> Self {
        Self { name, depth, width: WidthGrowth::Random, num_layers, channels: 0 }
    }
}

const CASES: [Case; 8] = [
    Case::new("llama_gqa_tied", DepthGrowth::Stack, 5),
    Case::new("llama_mqa_untied", DepthGrowth::Interpolate, 5),
    Case::new("llama_mha_untied", DepthGrowth::ZeroInsert, 3),
    Case::new("gpt2_tied", DepthGrowth::Stack, 4),
    Case::new("gpt2_tied", DepthGrowth::Lemon, 3),
    Case { channels: 12, ..Case::new("llama_gqa_tied", DepthGrowth::Stack, 4) },
    Case { channels: 5, ..Case::new("llama_mqa_untied", DepthGrowth::ZeroInsert, 3) },
    // Copies keep the function by themselves, and are not masked.
    Case { width: WidthGrowth::Equal, ..Case::new("llama_mha_untied", DepthGrowth::Stack, 4) },
];

/// The fixture's model with more blocks, neurons and, in Llamas, heads and channels.
fn larger(small: &ModelConfig, case: &Case) -> ModelConfig {
    let mut config = small.clone();
    match &mut config {
        ModelConfig::Llama(llama) => {
            llama.hidden_size += case.channels;
            llama.intermediate_size += 16;
            llama.num_attention_heads *= 2;
            llama.num_key_value_heads *= 2;
            llama.num_hidden_layers = case.num_layers;
        }
        ModelConfig::Gpt2(gpt2) => {
            gpt2.n_inner += 16;
            gpt2.n_layer = case.num_layers;
        }
    }
    config
}

/// A grown model with its masks.
struct Grown {
    config: ModelConfig,
    weights: NamedWeights,
    ramp: Ramp,
}

fn grown(fixture: &Fixture, case: &Case) -> Grown {
    let (small, config) = (&fixture.config, larger(&fixture.config, case));
    let Case { depth, width, .. } = *case;
    let plan = GrowthPlan { depth, width, mask_steps: STEPS, ..GrowthPlan::DEFAULT };
    let source = Box::new(NamedModel::new(small, fixture.params()));
    let model = grow(source, &config, &plan, ("the fixture", 5)).expect("they fit");
    let ramp = plan.ramp(3, [small, &config]).expect("it has masks");
    Grown { weights: named_weights(&*model, Kind::Double), config, ramp }
}

fn subject(grown: &Grown, recompute: Recompute, step: u64) -> Subject {
    let rules = Rules::all(adamw());
    let model = (&grown.config, &grown.weights);
    let Subject { compute, model, state } = Subject::of(model, Kind::Double, recompute, &rules);
    let model = model.with_ramp(&compute, Some(grown.ramp.clone()), step);
    Subject { compute, model, state }
}

fn inputs(fixture: &Fixture) -> Tensor {
    fixture.get("tokens").narrow(1, 0, 11).contiguous()
}

fn logits_at(grown: &Grown, fixture: &Fixture, step: u64) -> Tensor {
    let subject = subject(grown, Recompute::None, step);
    let inputs = inputs(fixture);
    let found = alone(&subject.state.units, |traffic| {
        logits(subject.layers(), (&inputs, None), traffic).expect("one rank")
    });
    found.view_as(&PlainModel::new(&grown.config).logits(&grown.weights, &inputs))
}

#[test]
fn masks_begin_with_the_small_model_and_end_with_the_plain_large_one() {
    for case in CASES {
        let fixture = Fixture::load(case.name);
        let grown = grown(&fixture, &case);
        let inputs = inputs(&fixture);
        let small = PlainModel::new(&fixture.config).logits(&fixture.params(), &inputs);
        let large = PlainModel::new(&grown.config).logits(&grown.weights, &inputs);
        for (step, expected) in [(0, &small), (3, &small), (3 + STEPS, &large), (99, &large)] {
            let error = relative_error(&logits_at(&grown, &fixture, step), expected);
            assert!(error < TOLERANCE, "{case:?}, step {step}: {error:e}");
        }
        // What was added has an effect, or there was nothing to mask.
        assert!(relative_error(&small, &large) > 1e-3, "{case:?}");
        let between = logits_at(&grown, &fixture, 5);
        assert!(relative_error(&between, &small) > 1e-6, "{case:?}");
    }
}

/// The plain model that computes what the masked one does: its config and weights.
fn folded(grown: &Grown, weights: &NamedWeights, mask: f64) -> (ModelConfig, NamedWeights) {
    let spec = grown.config.spec();
    let masks = |old: usize, new: usize| {
        let ones = Tensor::ones([new as i64], (Kind::Double, tch::Device::Cpu));
        let _ = ones.narrow(0, old as i64, (new - old) as i64).fill_(mask);
        ones
    };
    let heads = masks(grown.ramp.heads * spec.head_dim, spec.num_heads * spec.head_dim);
    let neurons = masks(grown.ramp.neurons, spec.intermediate_size);
    let channels = masks(grown.ramp.channels, spec.hidden_size);
    let share = channels.mean(Kind::Double).double_value(&[]);
    let fold = |name: &str, value: &Tensor| {
        let layer = name.split('.').find_map(|part| part.parse::<usize>().ok());
        let attention = name.contains(".o_proj.") || name.contains(".attn.c_proj.");
        let ends = attention || name.contains(".down_proj.") || name.contains(".mlp.c_proj.");
        if name.contains("embed_tokens") {
            return value * &channels;
        }
        // All norms of Llamas are over the stream; those of GPT-2 have a share of 1.
        if name.contains("norm") {
            return value * share.sqrt();
        }
        let value = match layer {
            Some(layer) if ends && grown.ramp.blocks.contains(&layer) => value * mask,
            Some(_) if ends && value.dim() == 2 => {
                let mask = if attention { &heads } else { &neurons };
                let stored_by_input = name.contains(".c_proj.");
                value * if stored_by_input { mask.unsqueeze(1) } else { mask.shallow_clone() }
            }
            _ => value.shallow_clone(),
        };
        // Only Llamas get channels, whose maps are [out, in].
        if ends && share < 1.0 { value * channels.unsqueeze(1) } else { value }
    };
    let mut config = grown.config.clone();
    if let ModelConfig::Llama(llama) = &mut config {
        llama.rms_norm_eps *= share;
    }
    (config, weights.iter().map(|(name, value)| (name.clone(), fold(name, value))).collect())
}

#[test]
fn the_gradient_behind_a_mask_is_that_of_autograd() {
    for case in CASES {
        let fixture = Fixture::load(case.name);
        let grown = grown(&fixture, &case);
        let leaves: BTreeMap<String, Tensor> = grown
            .weights
            .iter()
            .map(|(name, value)| (name.clone(), value.copy().set_requires_grad(true)))
            .collect();
        let ids = inputs(&fixture);
        let expected = tch::with_grad(|| {
            let (config, weights) = folded(&grown, &leaves, 0.25);
            let loss = PlainModel::new(&config).loss_sum(&weights, &ids);
            Tensor::run_backward(&[loss], &leaves.values().collect::<Vec<_>>(), false, false)
        });
        let expected: BTreeMap<&String, Tensor> = leaves.keys().zip(expected).collect();
        let rows: Vec<i64> = Vec::try_from(ids.reshape([-1])).expect("ids");
        let rows: Vec<u32> = rows.into_iter().map(|id| id as u32).collect();
        for recompute in [Recompute::None, Recompute::Elementwise, Recompute::Block] {
            // Two steps of eight.
            let subject = subject(&grown, recompute, 5);
            let tokens = Tokens::new(&subject.compute, &rows, 2);
            let _loss = subject.forward_backward_of(&tokens, grove::gradients::Round::only());
            for (param, found) in by_name(&subject.state.units, |unit| &unit.grads) {
                let difference = (&found - &expected[&param]).abs().max().double_value(&[]);
                let scale = expected[&param].abs().max().double_value(&[]).max(1.0);
                let error = difference / scale;
                assert!(error < GRADIENT_TOLERANCE, "{case:?}, {param}: {error:e}");
            }
        }
    }
}

#[test]
fn folded_weights_compute_without_masks_what_the_masked_model_does() {
    for case in CASES {
        let fixture = Fixture::load(case.name);
        let grown = grown(&fixture, &case);
        // Two steps of eight.
        let folding = Folding::new(&grown.config, &grown.ramp, 5).expect("masks below 1");
        let fold = |name: &str, value: &Tensor| {
            let Some(factors) = folding.of(name) else { return value.shallow_clone() };
            // In pieces that end within rows, as ranks own them.
            let flat = value.view(-1);
            let pieces = [0, 7, 50, flat.size()[0]].map(|end| end.min(flat.size()[0]));
            let pieces = pieces.windows(2).map(|ends| {
                factors.fold(ends[0] as usize, &flat.narrow(0, ends[0], ends[1] - ends[0]))
            });
            Tensor::cat(&pieces.collect::<Vec<_>>(), 0).view_as(value)
        };
        let weights: NamedWeights =
            grown.weights.iter().map(|(name, value)| (name.clone(), fold(name, value))).collect();
        let (config, expected) = folded(&grown, &grown.weights, 0.25);
        for (name, expected) in expected {
            let error = (&weights[&name] - expected).abs().max().double_value(&[]);
            assert!(error < TOLERANCE, "{name}: {error:e}");
        }
        let eps = |config: &ModelConfig| config.spec().eps;
        assert!((eps(&folding.config) / eps(&config) - 1.0).abs() < TOLERANCE);
        let plain = PlainModel::new(&config).logits(&weights, &inputs(&fixture));
        let error = relative_error(&logits_at(&grown, &fixture, 5), &plain);
        assert!(error < TOLERANCE, "{case:?}: {error:e}");
    }
}
