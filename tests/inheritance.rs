//! A run that learns from a teacher: its gradient against ordinary autograd in f64, and the program.

use std::collections::BTreeMap;

use grove::model::block::Recompute;
use grove::model::lesson::Mixture;
use grove::model::plain::PlainModel;
use grove::pass::Tokens;
use grove::teacher::{Distillation, Fading, Teacher};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::fixture::{Fixture, Subject, by_name, relative_error};
use crate::program::Program;

/// Loss and gradient are sums of a few hundred terms in f64.
const TOLERANCE: f64 = 1e-10;

/// Student and teacher of one vocabulary: another family, another width, tied and untied.
const PAIRS: [(&str, &str); 3] = [
    ("llama_mha_untied", "llama_mqa_untied"),
    ("llama_gqa_tied", "gpt2_tied"),
    ("gpt2_tied", "llama_gqa_tied"),
];

fn teacher_of(fixture: &Fixture) -> Teacher {
    let Subject { model, state, .. } = Subject::new(fixture, Kind::Double, Recompute::Block);
    Teacher { model, state, flops_per_token: 1 }
}

/// `(1 - a) CE + a T^2 KL` by autograd: `(CE, T^2 KL, gradients)`.
fn reference(
    (student, teacher): (&Fixture, &Fixture),
    (inputs, targets): (&Tensor, &Tensor),
    Mixture { weight, temperature }: Mixture,
) -> (f64, f64, BTreeMap<String, Tensor>) {
    let leaves: BTreeMap<String, Tensor> =
        student.params().into_iter().map(|(n, t)| (n, t.set_requires_grad(true))).collect();
    let rows = |logits: Tensor| logits.flatten(0, 1);
    let taught = rows(PlainModel::new(&teacher.config).logits(&teacher.params(), inputs));
    tch::with_grad(|| {
        let logits = rows(PlainModel::new(&student.config).logits(&leaves, inputs));
        let none = None::<&Tensor>;
        let loss = logits.cross_entropy_loss(targets, none, tch::Reduction::Sum, -100, 0.0);
        let soft = (&logits / temperature).log_softmax(-1, Kind::Double);
        let chances = (&taught / temperature).softmax(-1, Kind::Double);
        let kl = soft.kl_div(&chances, tch::Reduction::None, false);
        let counts = targets.not_equal(-100).to_kind(Kind::Double).unsqueeze(-1);
        let divergence = (kl * counts).sum(Kind::Double) * temperature.powi(2);
        let mixed = &loss * (1.0 - weight) + &divergence * weight;
        let gradients =
            Tensor::run_backward(&[mixed], &leaves.values().collect::<Vec<_>>(), false, false);
        let named = leaves.keys().cloned().zip(gradients).collect();
        (loss.double_value(&[]), divergence.double_value(&[]), named)
    })
}

#[test]
fn the_gradient_of_the_mixture_is_that_of_autograd() {
    for (student, teacher) in PAIRS {
        let (student, teacher) = (Fixture::load(student), Fixture::load(teacher));
        let subject = Subject::new(&student, Kind::Double, Recompute::Elementwise);
        let distillation = Distillation {
            weight: 0.6,
            steps: 10,
            fading: Fading::Linear,
            temperature: 2.0,
            teacher: Some(teacher_of(&teacher)),
        };
        let ids = student.get("tokens").narrow(1, 0, 11);
        let rows: Vec<i64> = Vec::try_from(ids.reshape([-1])).expect("ids");
        let rows: Vec<u32> = rows.into_iter().map(|id| id as u32).collect();
        let mut tokens = Tokens::new(&subject.compute, &rows, 2);
        // A target that does not count, in the midst of a chunk.
        let _ = tokens.targets.get(3).fill_(-100);
        let lesson = distillation.lesson(&subject.compute, &tokens, 5).expect("one rank");
        tokens.lesson = lesson;
        let mixture = distillation.mixture(5).expect("half of the steps are left");
        assert_eq!(mixture, Mixture { weight: 0.3, temperature: 2.0 });
        let expected = reference((&student, &teacher), (&tokens.inputs, &tokens.targets), mixture);

        let loss = subject.forward_backward_of(&tokens, grove::gradients::Round::only());
        let divergence = tokens.lesson.as_ref().expect("set").divergence.double_value(&[]);
        assert!((loss / expected.0 - 1.0).abs() < TOLERANCE, "{loss} for {}", expected.0);
        assert!((divergence / expected.1 - 1.0).abs() < TOLERANCE, "{divergence}, {}", expected.1);
        for (name, found) in by_name(&subject.state.units, |unit| &unit.grads) {
            let error = relative_error(&found, &expected.2[&name]);
            assert!(error < TOLERANCE, "{name}: {error:e}");
        }
    }
}

#[test]
fn the_weight_falls_to_nothing() {
    let at = |fading, step| {
        let (weight, steps, temperature, teacher) = (0.8, 10, 2.0, None);
        let it = Distillation { weight, steps, fading, temperature, teacher };
        it.mixture(step).map(|mixture| mixture.weight)
    };
    assert_eq!(at(Fading::Linear, 0), Some(0.8));
    assert_eq!(at(Fading::Linear, 5), Some(0.4));
    assert!((at(Fading::Cosine, 5).expect("half") - 0.4).abs() < 1e-15);
    assert_eq!(at(Fading::Constant, 9), Some(0.8));
    for fading in [Fading::Linear, Fading::Cosine, Fading::Constant] {
        assert_eq!(at(fading, 10), None);
    }
}

/// A trained small model, and the overrides by which a run learns from it for 6 of its 10 steps.
fn with_teacher() -> (Program, [&'static str; 6]) {
    let program = Program::new();
    let small = ["run.dir=small", "run.steps=8", "model.hidden_size=16", "eval.every=0"];
    program.train(1, &small);
    let teacher = program.path("small");
    let link = format!("distill.teacher={}", teacher.display());
    // Tests are short-lived, and so is what they leave.
    let link: &'static str = Box::leak(link.into_boxed_str());
    let sets =
        [link, "distill.steps=6", "run.steps=10", "eval.every=0", "checkpoint.every=4", "seed=9"];
    (program, sets)
}

#[test]
fn a_taught_run_has_the_same_bits_at_every_rank_count_and_stage_and_resumes() {
    let (program, sets) = with_teacher();
    let mut expected = None;
    for (ranks, zero) in [(1, 0), (2, 0), (3, 1), (4, 3)] {
        let own = [format!("run.dir=taught-{ranks}-{zero}"), format!("parallel.zero={zero}")];
        let own = own.each_ref().map(String::as_str);
        let keep = ["parallel.keep_gathered_numel=0", "checkpoint.keep_last=9"];
        program.train_in_threads(ranks, &[&sets[..], &own, &keep].concat());
        let hash = program.hash(&format!("taught-{ranks}-{zero}"), 10);
        assert_eq!(&hash, expected.get_or_insert(hash.clone()), "{ranks} ranks at stage {zero}");
    }
    // The teacher changes what is learned.
    program.train_in_threads(1, &["run.dir=alone", "run.steps=10", "eval.every=0", "seed=9"]);
    assert_ne!(Some(program.hash("alone", 10)), expected);
    // From within the taught steps and from after them.
    for gone in [&[8, 10][..], &[10]] {
        for step in gone {
            let folder = program.path(&format!("taught-1-0/checkpoints/step-{step:08}"));
            std::fs::remove_dir_all(folder).expect("a checkpoint");
        }
        let resume = ["run.dir=taught-1-0", "checkpoint.resume=true", "checkpoint.keep_last=9"];
        let same = ["parallel.keep_gathered_numel=0"];
        program.train_in_threads(1, &[&sets[..], &resume, &same].concat());
        assert_eq!(Some(program.hash("taught-1-0", 10)), expected);
    }
}

#[test]
fn a_teacher_is_told_of_and_counted_as_long_as_it_counts() {
    let (program, sets) = with_teacher();
    let said = program.train(1, &sets);
    assert!(said.contains("counts until step 6"), "{said}");
    assert!(said.contains("the teacher no longer counts after step 6"), "{said}");
    let records = program.step_records("run");
    let weights: Vec<Option<f64>> =
        records.iter().map(|record| record["distill"]["weight"].as_f64()).collect();
    let expected = |step: u32| (step < 6).then(|| 1.0 - f64::from(step) / 6.0);
    assert_eq!(weights, (0..10).map(expected).collect::<Vec<_>>());
    assert!(records[0]["distill"]["loss"].as_f64().expect("a divergence") > 0.0);
    let teacher = |step: usize| records[step - 1]["memory_bytes"]["teacher"].as_u64();
    assert!(teacher(1).expect("bytes") > 10_000, "a working copy of each weight");
    assert_eq!(teacher(records.len()), Some(0), "it is let go");
    let flops = |record: &Value| record["total_flops"].as_f64().expect("a number");
    let cost = |index: usize| flops(&records[index]) - flops(&records[index - 1]);
    let last_taught = cost(5);
    assert_eq!(cost(1), last_taught);
    assert_eq!(cost(6), cost(9));
    // The small model is a quarter to a half of the large one, and its forward a third of that.
    let part = last_taught / cost(6) - 1.0;
    assert!(part > 0.05 && part < 0.25, "{part}");
}

#[test]
fn a_teacher_that_does_not_fit_is_refused_before_a_step() {
    let (program, sets) = with_teacher();
    let fail = |more: &[&str]| {
        let all = [&sets[..], more].concat();
        let sets = all.iter().flat_map(|set| ["--set", *set]);
        program.fail(&["train", "config.toml"].into_iter().chain(sets).collect::<Vec<_>>())
    };
    let text = fail(&["model.vocab_size=300"]);
    assert!(text.contains("has vocab_size 256, but this run needs 300"), "{text}");
    let text = fail(&["batch.sequence_length=32"]);
    assert!(text.contains("has max_position_embeddings 16"), "{text}");
    let text = fail(&["distill.weight=1.5", "distill.temperature=0.0", "distill.steps=0"]);
    for part in ["distill.weight = 1.5", "distill.temperature = 0.0", "distill.steps = 0"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let text = fail(&["loss.z_loss=1e-4"]);
    assert!(text.contains("loss = z_loss = 0.0001") && text.contains("leave out [loss]"), "{text}");
    let text = program.fail(&["train", "config.toml", "--set", "distill.steps=3"]);
    assert!(text.contains("has no effect because distill.teacher is not set"), "{text}");
}
