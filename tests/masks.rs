//! Growth behind masks that rise: exact at 0, the plain model at 1, and in between the gradient of
//! autograd in f64; then the program.

use std::collections::BTreeMap;

use grove::config::{DepthGrowth, GrowthPlan, WidthGrowth};
use grove::growth::{NamedModel, grow, named_weights};
use grove::model::block::Recompute;
use grove::model::config::ModelConfig;
use grove::model::plain::{NamedWeights, PlainModel};
use grove::model::ramp::Ramp;
use grove::pass::{Tokens, logits};
use grove::rules::Rules;
use tch::{Kind, Tensor};

use crate::fixture::{Fixture, Subject, adamw, alone, by_name, relative_error};
use crate::program::Program;

/// Sums of a few hundred products in f64.
const TOLERANCE: f64 = 1e-12;
/// The same through a backward.
const GRADIENT_TOLERANCE: f64 = 1e-10;
const STEPS: u64 = 8;

/// The fixture's model with more neurons, blocks and, in Llamas, heads.
fn larger(small: &ModelConfig, num_layers: usize) -> ModelConfig {
    let mut config = small.clone();
    match &mut config {
        ModelConfig::Llama(llama) => {
            llama.intermediate_size += 16;
            llama.num_attention_heads *= 2;
            llama.num_key_value_heads *= 2;
            llama.num_hidden_layers = num_layers;
        }
        ModelConfig::Gpt2(gpt2) => {
            gpt2.n_inner += 16;
            gpt2.n_layer = num_layers;
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

fn grown(fixture: &Fixture, depth: DepthGrowth, num_layers: usize) -> Grown {
    let (small, config) = (&fixture.config, larger(&fixture.config, num_layers));
    let width = WidthGrowth::Random;
    let plan = GrowthPlan { depth, width, mask_steps: STEPS, ..GrowthPlan::DEFAULT };
    let source = Box::new(NamedModel::new(small, fixture.params()));
    let model = grow(source, &config, &plan, ("the fixture", 5)).expect("they fit");
    let (old, new) = (small.spec(), config.spec());
    let ramp = Ramp {
        from_step: 3,
        steps: STEPS,
        blocks: depth.added_blocks(old.num_layers, new.num_layers),
        heads: old.num_heads,
        neurons: old.intermediate_size,
    };
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

/// Fixtures, operators and blocks of the larger model.
const CASES: [(&str, DepthGrowth, usize); 5] = [
    ("llama_gqa_tied", DepthGrowth::Stack, 5),
    ("llama_mqa_untied", DepthGrowth::Interpolate, 5),
    ("llama_mha_untied", DepthGrowth::ZeroInsert, 3),
    ("gpt2_tied", DepthGrowth::Stack, 4),
    ("gpt2_tied", DepthGrowth::Lemon, 3),
];

#[test]
fn masks_begin_with_the_small_model_and_end_with_the_plain_large_one() {
    for (name, depth, num_layers) in CASES {
        let fixture = Fixture::load(name);
        let grown = grown(&fixture, depth, num_layers);
        let inputs = inputs(&fixture);
        let small = PlainModel::new(&fixture.config).logits(&fixture.params(), &inputs);
        let large = PlainModel::new(&grown.config).logits(&grown.weights, &inputs);
        for (step, expected) in [(0, &small), (3, &small), (3 + STEPS, &large), (99, &large)] {
            let error = relative_error(&logits_at(&grown, &fixture, step), expected);
            assert!(error < TOLERANCE, "{name}, {depth:?}, step {step}: {error:e}");
        }
        // What was added has an effect, or there was nothing to mask.
        assert!(relative_error(&small, &large) > 1e-3, "{name}, {depth:?}");
        let between = logits_at(&grown, &fixture, 5);
        assert!(relative_error(&between, &small) > 1e-6, "{name}, {depth:?}");
    }
}

/// The weights of a plain model that computes what the masked one does.
fn folded(grown: &Grown, weights: &NamedWeights, mask: f64) -> NamedWeights {
    let spec = grown.config.spec();
    let rows = |old: usize, new: usize| {
        let ones = Tensor::ones([new as i64], (Kind::Double, tch::Device::Cpu));
        let _ = ones.narrow(0, old as i64, (new - old) as i64).fill_(mask);
        ones
    };
    let heads = rows(grown.ramp.heads * spec.head_dim, spec.num_heads * spec.head_dim);
    let neurons = rows(grown.ramp.neurons, spec.intermediate_size);
    let fold = |name: &str, value: &Tensor| {
        let layer = name.split('.').find_map(|part| part.parse::<usize>().ok());
        let attention = name.contains(".o_proj.") || name.contains(".attn.c_proj.");
        let ends = attention || name.contains(".down_proj.") || name.contains(".mlp.c_proj.");
        match layer {
            Some(layer) if ends && grown.ramp.blocks.contains(&layer) => value * mask,
            Some(_) if ends && value.dim() == 2 => {
                let mask = if attention { &heads } else { &neurons };
                let stored_by_input = name.contains(".c_proj.");
                value * if stored_by_input { mask.unsqueeze(1) } else { mask.shallow_clone() }
            }
            _ => value.shallow_clone(),
        }
    };
    weights.iter().map(|(name, value)| (name.clone(), fold(name, value))).collect()
}

#[test]
fn the_gradient_behind_a_mask_is_that_of_autograd() {
    for (name, depth, num_layers) in CASES {
        let fixture = Fixture::load(name);
        let grown = grown(&fixture, depth, num_layers);
        let leaves: BTreeMap<String, Tensor> = grown
            .weights
            .iter()
            .map(|(name, value)| (name.clone(), value.copy().set_requires_grad(true)))
            .collect();
        let ids = inputs(&fixture);
        let expected = tch::with_grad(|| {
            let weights = folded(&grown, &leaves, 0.25);
            let loss = PlainModel::new(&grown.config).loss_sum(&weights, &ids);
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
                assert!(error < GRADIENT_TOLERANCE, "{name}, {depth:?}, {param}: {error:e}");
            }
        }
    }
}

/// Blocks stacked, neurons and heads added at random, all behind masks from step 6 to 14.
const STAGES: &str = r#"
[[growth]]
at_step = 6
depth = "stack"
width = "random"
mask_steps = 8
[growth.model]
num_hidden_layers = 3
num_attention_heads = 6
num_key_value_heads = 3
intermediate_size = 64
"#;

fn with_stages(stages: &str) -> Program {
    let program = Program::new();
    let config = std::fs::read_to_string(program.path("config.toml")).expect("a config");
    std::fs::write(program.path("config.toml"), config + stages).expect("a config");
    program
}

#[test]
fn a_run_behind_masks_has_the_same_bits_at_every_rank_count_and_stage_and_resumes() {
    let program = with_stages(STAGES);
    let mut expected = None;
    let keep = ["checkpoint.keep_last=9", "checkpoint.every=5", "parallel.keep_gathered_numel=0"];
    for (ranks, zero) in [(1, 0), (2, 0), (4, 3)] {
        let own = [format!("run.dir=masked-{ranks}-{zero}"), format!("parallel.zero={zero}")];
        let own = own.each_ref().map(String::as_str);
        program.train_in_threads(ranks, &[&own[..], &keep].concat());
        let hash = program.hash(&format!("masked-{ranks}-{zero}"), 20);
        assert_eq!(&hash, expected.get_or_insert(hash.clone()), "{ranks} ranks at stage {zero}");
    }
    let run = "masked-1-0";
    let folder = |step: u64| format!("{run}/checkpoints/step-{step:08}");
    // In the midst of the ramp a checkpoint is a model with masks: it can be run, not taken out.
    let text = program.fail(&["export", &folder(10), "out"]);
    assert!(text.contains("of step 10, when masks over what growth has added are"), "{text}");
    assert!(text.contains("step 14 or later"), "{text}");
    program.succeed(&["export", &folder(15), "out"]);
    program.succeed(&["eval", &folder(10), "masked-1-0/data.tokens"]);
    for step in [15, 20] {
        std::fs::remove_dir_all(program.path(&folder(step))).expect("a checkpoint");
    }
    let resume = ["run.dir=masked-1-0", "checkpoint.resume=true"];
    program.train_in_threads(1, &[&resume[..], &keep].concat());
    assert_eq!(Some(program.hash(run, 20)), expected);
}

#[test]
fn masks_that_cannot_be_are_refused_before_a_step() {
    for (from, to, expected) in [
        ("mask_steps = 8", "mask_steps = 15", "growth[0].mask_steps = 15 goes beyond step 20"),
        ("mask_steps = 8", "", "leaves heads and neurons of width = \"random\" to change"),
        ("num_attention_heads = 6", "num_attention_heads = 9", "keep 2 query heads a key head"),
        ("num_hidden_layers = 3", "hidden_size = 64", "masks do not cover the residual stream"),
    ] {
        let text = with_stages(&STAGES.replace(from, to)).fail(&["train", "config.toml"]);
        assert!(text.contains(expected), "{expected} is not in: {text}");
    }
    // Before the run, in the plan.
    for form in ["model.residual.norm=\"sub\"", "init.scheme=\"rezero\""] {
        let text = with_stages(STAGES).fail(&["plan", "config.toml", "--set", form]);
        let expected =
            "growth[0].mask_steps = 8 masks branches of Llama's and GPT-2's residual form";
        assert!(text.contains(expected), "{form}: {text}");
    }
    let sets = ["--set", "init.from=x", "--set", "init.growth.mask_steps=3"];
    let text = Program::new().fail(&[&["plan", "config.toml"][..], &sets].concat());
    assert!(text.contains("is for stages within a run"), "{text}");
}
