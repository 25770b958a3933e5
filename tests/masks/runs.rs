//! Runs behind masks: the program's checkpoints, resumes and refusals.

use grove::checkpoint::{Checkpoint, Dtype, TensorFile, TensorView};
use grove::model::block::Recompute;
use grove::model::config::ModelConfig;
use grove::model::plain::{NamedWeights, PlainModel};
use grove::model::ramp::Ramp;
use grove::pass::logits;
use tch::{Kind, Tensor};

use super::{Grown, STEPS, TOLERANCE, folded, subject};
use crate::fixture::{alone, relative_error};
use crate::program::Program;

/// The tensors of a file in f64.
fn tensors(file: &TensorFile) -> NamedWeights {
    let value = |view: TensorView<'_>| {
        let kind = if view.spec.dtype == Dtype::Bf16 { Kind::BFloat16 } else { Kind::Float };
        let shape: Vec<i64> = view.spec.shape.iter().map(|&size| size as i64).collect();
        (
            view.spec.name.clone(),
            Tensor::from_data_size(view.bytes, &shape, kind).to_kind(Kind::Double),
        )
    };
    file.tensors().map(value).collect()
}

/// Half of the spacing of numbers of so many bits; in fp32 the factor and its product are rounded.
const ROUNDED: [(&str, f64); 2] = [("fp32", 3.0 * 6e-8), ("bf16", 4e-3)];
/// Logits of weights that are rounded to fp32 once more.
const LOGITS_TOLERANCE: f64 = 1e-5;

#[test]
fn a_checkpoint_behind_masks_is_a_plain_model_for_others_and_keeps_its_masters() {
    for (precision, tolerance) in ROUNDED {
        let program = with_stages(&format!("{STAGES}hidden_size = 40\n"));
        let sets = ["parallel.zero=2", "run.steps=14", "checkpoint.every=8"];
        let own = [format!("precision={precision}"), "checkpoint.keep_last=9".to_owned()];
        program.train_in_threads(2, &[&sets[..], &own.each_ref().map(String::as_str)].concat());
        let folder = program.path("run/checkpoints/step-00000008");
        let checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
        let text = checkpoint.config_json().expect("its config");
        let stored = ModelConfig::from_hf_json(&text).expect("a known model");
        let (model, masters) = (tensors(checkpoint.model()), tensors(checkpoint.masters()));
        let ramp = Ramp {
            from_step: 6,
            steps: STEPS,
            blocks: vec![2],
            heads: 4,
            neurons: 48,
            channels: 32,
        };
        let mut config = stored.clone();
        if let ModelConfig::Llama(llama) = &mut config {
            llama.rms_norm_eps = 1e-5;
        }
        let grown = Grown { config, weights: masters, ramp };
        let (expected_config, expected) = folded(&grown, &grown.weights, 0.25);
        let share = stored.spec().eps / expected_config.spec().eps;
        assert!((share - 1.0).abs() < TOLERANCE, "{precision}");
        let mut num_folded = 0;
        for (name, found) in &model {
            let error = (found - &expected[name]).abs() / expected[name].abs().clamp_min(1e-30);
            let error = error.max().double_value(&[]);
            assert!(error < tolerance, "{precision}, {name}: {error:e}");
            num_folded += usize::from(expected[name] != grown.weights[name]);
        }
        // Three blocks of two maps and two norms, the last norm, the embedding.
        assert_eq!(num_folded, 14);
        if precision == "fp32" {
            let ids = Tensor::arange(16, (Kind::Int64, tch::Device::Cpu)).view([1, 16]) * 7;
            let subject = subject(&grown, Recompute::None, 8);
            let masked = alone(&subject.state.units, |traffic| {
                logits(subject.layers(), (&ids, None), traffic).expect("one rank")
            });
            let plain = PlainModel::new(&stored).logits(&model, &ids);
            let error = relative_error(&masked.view_as(&plain), &plain);
            assert!(error < LOGITS_TOLERANCE, "{error:e}");
        }
        // Read as an unmasked model by whoever knows no more than the Hugging Face files, and by us.
        let folder = "run/checkpoints/step-00000008";
        program.succeed(&["export", folder, "out", "--dtype", precision]);
        let exported = TensorFile::open_model(&program.path("out")).expect("exported");
        assert_eq!(tensors(&exported), model, "{precision}");
        let losses =
            [folder, "out"].map(|model| program.succeed(&["eval", model, "run/data.tokens"]));
        let loss = |text: &str| {
            let (_, rest) = text.split_once("loss").expect("a loss");
            rest.split(',').next().map(str::to_owned)
        };
        assert_eq!(loss(&losses[0]), loss(&losses[1]));
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

/// A GPT-2 with a wider stream.
const GPT2_STAGE: &str = r#"
[[growth]]
at_step = 6
width = "random"
mask_steps = 8
[growth.model]
n_embd = 64
n_head = 8
"#;

/// A mean loss in fp32, of sums in another order.
const LOSS_TOLERANCE: f64 = 2e-6;

fn with_stages(stages: &str) -> Program {
    let program = Program::new();
    let config = std::fs::read_to_string(program.path("config.toml")).expect("a config");
    std::fs::write(program.path("config.toml"), config + stages).expect("a config");
    program
}

#[test]
fn a_run_behind_masks_has_the_same_bits_at_every_rank_count_and_stage_and_resumes() {
    let program = with_stages(&format!("{STAGES}hidden_size = 40\n"));
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
    // In the midst of the ramp the optimizer's state is that of other weights.
    let grow = ["grow", &folder(10), "--config", "config.toml", "--out", "grown"];
    let text = program.fail(&grow);
    assert!(text.contains("of step 10, when masks over what growth has added are"), "{text}");
    assert!(text.contains("step 14 or later"), "{text}");
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
        ("mask_steps = 8", "", "leaves what width = \"random\" adds to change"),
        ("num_attention_heads = 6", "num_attention_heads = 9", "keep 2 query heads a key head"),
        ("[growth.model]", "[growth.model]\nrms_norm_eps = 1e-6", "model.rms_norm_eps = 0.000001"),
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
    let program = Program::new();
    program.use_gpt2();
    let config = std::fs::read_to_string(program.path("config.toml")).expect("a config");
    std::fs::write(program.path("config.toml"), config + GPT2_STAGE).expect("a config");
    let text = program.fail(&["train", "config.toml"]);
    assert!(
        text.contains("whose mean and variance over masked channels are no LayerNorm"),
        "{text}"
    );
    // Growth as a run starts has masks for its steps; a folder has no steps.
    let sets = ["--set", "init.from=x", "--set", "init.growth.mask_steps=21"];
    let text = Program::new().fail(&[&["plan", "config.toml"][..], &sets].concat());
    assert!(text.contains("init.growth.mask_steps = 21 goes beyond step 20"), "{text}");
    let grow = ["grow", "x", "--config", "config.toml", "--out", "y"];
    let sets = ["--set", "init.growth.mask_steps=3"];
    let text = Program::new().fail(&[&grow[..], &sets].concat());
    assert!(text.contains("needs the steps of a run, and a folder has none"), "{text}");
}

#[test]
fn a_run_that_starts_from_a_grown_model_raises_its_masks_and_resumes_without_the_source() {
    let program = Program::new();
    program.train_in_threads(1, &["run.dir=small", "run.steps=10"]);
    let small = program.path("small");
    let from = format!("init.from={small:?}");
    program.train_in_threads(1, &["run.dir=plain", "run.steps=3", &from]);
    let larger = [
        "model.hidden_size=40",
        "model.head_dim=8",
        "model.num_attention_heads=6",
        "model.num_key_value_heads=3",
        "model.intermediate_size=64",
        "model.num_hidden_layers=3",
        "init.growth.depth=stack",
        "init.growth.width=random",
        "init.growth.mask_steps=8",
        "checkpoint.keep_last=9",
        "checkpoint.every=5",
    ];
    let train = |ranks: usize, run: &str, more: &[&str]| {
        let dir = format!("run.dir={run}");
        program.train_in_threads(ranks, &[&[&dir, from.as_str()][..], &larger, more].concat());
        program.hash(run, 20)
    };
    let expected = train(1, "masked-1", &[]);
    assert_eq!(train(2, "masked-2", &["parallel.zero=3"]), expected);
    let text = std::fs::read_to_string(program.path("masked-1/growth-00000000.json"));
    let text = text.expect("a certificate");
    assert!(text.contains("\"is_exact\": true"), "{text}");
    // With masks of 0 the first step is that of the small model.
    let first = |run: &str| program.losses(run)[0].1;
    let difference = (first("masked-1") - first("plain")).abs();
    assert!(difference < LOSS_TOLERANCE, "{difference:e}");
    std::fs::remove_dir_all(&small).expect("the source");
    for step in [10, 15, 20] {
        let folder = program.path(&format!("masked-1/checkpoints/step-{step:08}"));
        std::fs::remove_dir_all(folder).expect("a checkpoint");
    }
    assert_eq!(train(1, "masked-1", &["checkpoint.resume=true"]), expected);
}
