//! What training makes of grown models: the twin test, copies that part, and moments.

use grove_optim::{
    AdamWConfig, Elements, Rule, RuleConfig, Scalars, StateDtype, StateKind, StateSlice, Working,
};

use super::*;
use crate::config::MomentGrowth;

/// 20 steps of both models differ by rounding, which Adam's division carries on.
const SAME_TRAJECTORY: f64 = 1e-10;
const STEPS: u64 = 20;
const LR: f64 = 1e-2;

/// A model in training by AdamW on the plain path.
struct Training {
    model: PlainModel,
    weights: NamedWeights,
    first: NamedWeights,
    second: NamedWeights,
    step: u64,
}

fn adamw() -> Rule {
    let config = AdamWConfig {
        beta1: 0.9,
        beta2: 0.95,
        // Growth scales gradients, so an epsilon would tell the two apart.
        eps: 1e-30,
        weight_decay: 0.0,
        state_dtype: StateDtype::Accumulation,
    };
    RuleConfig::AdamW(config).build().expect("valid hyper-parameters")
}

impl Training {
    fn new(config: &ModelConfig, weights: NamedWeights) -> Self {
        let (first, second) = (state(0.0, &weights), state(0.0, &weights));
        Self { model: PlainModel::new(config), weights, first, second, step: 0 }
    }

    /// One step on tokens of its own, with a factor on the learning rate for each parameter.
    fn step(&mut self, lr_factor: impl Fn(&str) -> f64) {
        self.step += 1;
        let ids: Vec<i64> = (0..26).map(|i| (i * 5 + i * i + self.step as i64 * 3) % 17).collect();
        let tokens = Tensor::from_slice(&ids).view([2, 13]);
        let leaves: Vec<Tensor> =
            self.weights.values().map(|w| w.copy().set_requires_grad(true)).collect();
        let named = self.weights.keys().cloned().zip(leaves.iter().map(Tensor::shallow_clone));
        let loss = self.model.loss_sum(&named.collect(), &tokens) / 24.0;
        let grads = Tensor::run_backward(&[loss], &leaves, false, false);
        for (name, grad) in self.weights.keys().cloned().collect::<Vec<_>>().iter().zip(grads) {
            let scalars = Scalars {
                lr: LR * lr_factor(name),
                weight_decay: 0.0,
                grad_scale: 1.0,
                step: self.step,
                averaging_weight: 1.0,
                rounding_seed: 0,
            };
            let read = |from: &NamedWeights| -> Vec<f64> {
                Vec::try_from(from[name].reshape([-1])).expect("a vector of f64")
            };
            let (mut w, mut m, mut v) =
                (read(&self.weights), read(&self.first), read(&self.second));
            let grad: Vec<f64> = Vec::try_from(grad.reshape([-1])).expect("a vector of f64");
            let elements = Elements {
                master: &mut w,
                grad: &grad,
                state: vec![StateSlice::Values(&mut m), StateSlice::Values(&mut v)],
                working: Working::None,
                first: 0,
            };
            adamw().update(elements, &scalars).expect("an update");
            let shape = self.weights[name].size();
            for (to, values) in
                [(&mut self.weights, w), (&mut self.first, m), (&mut self.second, v)]
            {
                to.insert(name.clone(), Tensor::from_slice(&values).view(shape.as_slice()));
            }
        }
    }

    fn grown(&self, small: &ModelConfig, target: &ModelConfig, plan: &GrowthPlan) -> Self {
        let copied =
            |from: &NamedWeights| from.iter().map(|(n, v)| (n.clone(), v.copy())).collect();
        let source = NamedModel::new(small, copied(&self.weights))
            .with_state(StateKind::FirstMoment, copied(&self.first), self.step)
            .with_state(StateKind::SecondMoment, copied(&self.second), self.step);
        let model = grow(Box::new(source), target, plan, ("the small model", 5)).expect("they fit");
        let planes = [
            Plane::Weight,
            Plane::State(StateKind::FirstMoment),
            Plane::State(StateKind::SecondMoment),
        ];
        let anatomy = anatomy::Anatomy::new(target);
        let [weights, first, second] = planes.map(|plane| -> NamedWeights {
            let params = anatomy.params().iter();
            params.map(|a| (a.spec.name.clone(), param_value(&*model, a, plane))).collect()
        });
        Self { model: PlainModel::new(target), weights, first, second, step: self.step }
    }

    fn logits(&self) -> Tensor {
        self.model.logits(&self.weights, &tokens())
    }
}

/// By how much the learning rate of a parameter is divided whose inputs are doubled.
fn halved_if_reader(tied: bool) -> impl Fn(&str) -> f64 {
    move |name| {
        let is_norm = name.contains("norm") || name.contains("ln_");
        let is_embedding = ["embed_tokens", "wte", "wpe"].iter().any(|part| name.contains(part));
        let is_final_norm = name.contains("model.norm") || name.contains("ln_f");
        let is_bias = name.ends_with("bias");
        match (is_embedding, is_norm, is_final_norm && tied) {
            (true, ..) => 1.0,
            (_, true, false) => 1.0,
            (_, true, true) => 0.5,
            _ if is_bias => 1.0,
            _ => 0.5,
        }
    }
}

const TWICE: Target = Target { hidden: 24, heads: 8, kv_heads: 4, intermediate: 20, layers: 2 };

#[test]
fn a_grown_twin_follows_the_small_model() {
    for (small, target, tied) in [
        (llama(2, false), TWICE, false),
        (llama(2, true), TWICE, true),
        (gpt2(), Target { heads: 6, kv_heads: 6, ..TWICE }, true),
    ] {
        let mut training = Training::new(&small, weights(&small, 1));
        (0..5).for_each(|_| training.step(|_| 1.0));
        let plan = plan(WidthGrowth::Equal, ResidualGrowth::Copy, DepthGrowth::ZeroInsert);
        let config = larger(&small, target, ResidualGrowth::Copy);
        let mut twin = training.grown(&small, &config, &plan);
        let mut careless = training.grown(&small, &config, &plan);
        for step in 1..=STEPS {
            training.step(|_| 1.0);
            twin.step(halved_if_reader(tied));
            careless.step(|_| 1.0);
            let apart = max_difference(&training.logits(), &twin.logits());
            assert!(apart < SAME_TRAJECTORY, "{apart:e} after {step} steps");
        }
        // The learning rate does matter.
        assert!(max_difference(&training.logits(), &careless.logits()) > 1e-2);
    }
}

/// How far the two copies of each neuron are apart.
fn distance_of_copies(training: &Training) -> f64 {
    let gate = &training.weights["model.layers.0.mlp.gate_proj.weight"];
    max_difference(&gate.narrow(0, 0, 10), &gate.narrow(0, 10, 10))
}

#[test]
fn copies_part_after_an_uneven_split_and_never_after_an_equal_one() {
    let small = llama(2, false);
    let config = larger(&small, TWICE, ResidualGrowth::Copy);
    for (width, parts) in [(WidthGrowth::Equal, false), (WidthGrowth::Uneven, true)] {
        let plan = plan(width, ResidualGrowth::Copy, DepthGrowth::ZeroInsert);
        let mut training = Training::new(&small, weights(&small, 1)).grown(&small, &config, &plan);
        (0..STEPS).for_each(|_| training.step(|_| 1.0));
        let apart = distance_of_copies(&training);
        assert_eq!(apart > 1e-3, parts, "{width:?}: {apart:e}");
        assert!(parts || apart < SAME_TRAJECTORY, "{width:?}: {apart:e}");
    }
}

#[test]
fn a_silent_block_gets_its_first_gradients_at_its_ends() {
    let small = llama(2, false);
    let target = Target { hidden: 12, heads: 4, kv_heads: 2, intermediate: 10, layers: 3 };
    let config = larger(&small, target, ResidualGrowth::Copy);
    let mut training = Training::new(&small, weights(&small, 1));
    (0..3).for_each(|_| training.step(|_| 1.0));
    let mut deep = training.grown(&small, &config, &GrowthPlan::DEFAULT);
    let before = deep.weights["model.layers.1.mlp.up_proj.weight"].copy();
    deep.step(|_| 1.0);
    assert!(deep.weights["model.layers.1.mlp.up_proj.weight"].equal(&before));
    let ends = deep.weights["model.layers.1.mlp.down_proj.weight"].abs().max().double_value(&[]);
    assert!(ends > 0.0);
}

/// The counters and states of a model that was widened and deepened under a policy.
fn states_after(policy: MomentGrowth) -> Vec<(String, u64, f64)> {
    let small = llama(2, false);
    let target = Target { hidden: 12, heads: 4, kv_heads: 2, intermediate: 20, layers: 3 };
    let config = larger(&small, target, ResidualGrowth::Copy);
    let own = weights(&small, 1);
    let source = NamedModel::new(&small, weights(&small, 1))
        .with_state(StateKind::FirstMoment, state(0.5, &own), 7)
        .with_state(StateKind::SecondMoment, state(0.25, &own), 7);
    let plan = GrowthPlan { moments: policy, ..GrowthPlan::DEFAULT };
    let model = grow(Box::new(source), &config, &plan, ("small", 5)).expect("they fit");
    let anatomy = anatomy::Anatomy::new(&config);
    let plane = Plane::State(StateKind::SecondMoment);
    let rows = anatomy.params().iter().map(|assembly| {
        let smallest = param_value(&*model, assembly, plane).min().double_value(&[]);
        (assembly.spec.name.clone(), model.steps(assembly.parts[0]), smallest)
    });
    rows.collect()
}

#[test]
fn no_second_moment_is_zero_beside_a_counter_that_goes_on() {
    for policy in [MomentGrowth::Map, MomentGrowth::Zero, MomentGrowth::Fresh] {
        let rows = states_after(policy);
        for (name, steps, smallest) in &rows {
            assert_eq!(*steps == 0, *smallest == 0.0, "{policy:?} {name}");
        }
        let kept = rows.iter().filter(|(_, steps, _)| *steps == 7).count();
        // Block 2 is the inserted one or not; embedding, final norm and head are as they were.
        let expected = match policy {
            MomentGrowth::Map => 3 + 2 * 9,
            MomentGrowth::Zero => 3 + 2 * 6,
            MomentGrowth::Fresh => 0,
        };
        assert_eq!(kept, expected, "{policy:?}");
    }
}
