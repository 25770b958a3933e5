//! Fifty steps and four schedules against independent implementations; the fixtures come from
//! `scripts/fixtures_optim.py`, which names them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use grove_optim::{
    AdamWConfig, Decay, Elements, Groups, LionConfig, Real, Role, Rule, RuleConfig, Schedule,
    ScheduleConfig, Working, clip_scale, squared_norm,
};
use safetensors::SafeTensors;

const STEPS: u64 = 50;
/// Fifty steps of a few roundings each, relative to the largest element.
const F64_TOLERANCE: f64 = 1e-12;
const F32_TOLERANCE: f64 = 1e-6;
/// Torch's schedulers multiply their way from step to step, one rounding each.
const SCHEDULE_TOLERANCE: f64 = 1e-13;

struct Fixture(Vec<u8>);

impl Fixture {
    fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/parity.safetensors");
        Self(std::fs::read(path).unwrap())
    }

    /// A tensor of either dtype, flat, as f64 (exact).
    fn get(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        match view.dtype() {
            safetensors::Dtype::F64 => {
                let (chunks, _) = view.data().as_chunks::<8>();
                chunks.iter().map(|c| f64::from_le_bytes(*c)).collect()
            }
            safetensors::Dtype::F32 => {
                let (chunks, _) = view.data().as_chunks::<4>();
                chunks.iter().map(|c| f64::from(f32::from_le_bytes(*c))).collect()
            }
            other => panic!("{name} has dtype {other:?}"),
        }
    }
}

struct Param<T> {
    name: &'static str,
    role: Role,
    master: Vec<T>,
    grads: Vec<T>,
    state: Vec<Vec<T>>,
}

fn to<T: Real>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f64(v)).collect()
}

fn check<T: Real>(found: &[T], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let gap = (found.to_f64() - expected).abs() / largest;
        assert!(gap <= tolerance, "{what}[{i}]: off by {gap:e} of the largest element");
    }
}

fn run<T: Real>(rule: &Rule, peak: f64, label: &str, tolerance: f64) {
    let fixture = Fixture::load();
    let decay = Decay::Cosine { final_ratio: 0.1 };
    let schedule =
        Schedule::new(ScheduleConfig { lr: peak, warmup_steps: 5, decay }, STEPS).unwrap();
    let groups = Groups::default();
    let mut params = [("matrix", Role::Matrix), ("bias", Role::Bias)].map(|(name, role)| {
        let master: Vec<T> = to(&fixture.get(&format!("start.{name}")));
        let state = vec![vec![T::ZERO; master.len()]; rule.state_kinds().len()];
        Param { name, role, master, grads: to(&fixture.get(&format!("grad.{name}"))), state }
    });
    let mut num_clipped = 0;
    for step in 0..STEPS {
        let range = |n: usize| step as usize * n..(step as usize + 1) * n;
        let sum: f64 = params.iter().map(|p| squared_norm(&p.grads[range(p.master.len())])).sum();
        let scale = clip_scale(sum.sqrt(), 1.0);
        num_clipped += u64::from(scale < 1.0);
        for param in &mut params {
            let scalars = rule.scalars(groups.of(param.role), schedule.lr(step), scale, step + 1);
            let elements = Elements {
                grad: &param.grads[range(param.master.len())],
                master: &mut param.master,
                state: param.state.iter_mut().map(|s| &mut s[..]).collect(),
                working: Working::None,
            };
            rule.update(elements, &scalars).unwrap();
            if [1, 10, STEPS].contains(&(step + 1)) {
                let key = format!("{}.{label}.{}.step{}", rule.name(), param.name, step + 1);
                check(&param.master, &fixture.get(&key), tolerance, &key);
            }
        }
    }
    assert!(0 < num_clipped && num_clipped < STEPS, "the fixture must clip some steps, not all");
    for param in &params {
        for (kind, state) in rule.state_kinds().iter().zip(&param.state) {
            let key = format!("{}.{label}.{}.{}", rule.name(), param.name, kind.name());
            check(state, &fixture.get(&key), tolerance, &key);
        }
    }
}

#[test]
fn adamw_is_that_of_torch() {
    let rule = RuleConfig::AdamW(AdamWConfig::default()).build().unwrap();
    run::<f64>(&rule, 0.01, "f64", F64_TOLERANCE);
    run::<f32>(&rule, 0.01, "f32", F32_TOLERANCE);
}

#[test]
fn lion_is_that_of_lion_pytorch_and_optax() {
    let config = LionConfig { weight_decay: 1.0, ..LionConfig::default() };
    let rule = RuleConfig::Lion(config).build().unwrap();
    run::<f64>(&rule, 0.003, "f64", F64_TOLERANCE);
    run::<f32>(&rule, 0.003, "f32", F32_TOLERANCE);
}

#[test]
fn schedules_are_those_of_torch_and_transformers() {
    let fixture = Fixture::load();
    let kinds = [
        ("constant", 5, Decay::Constant),
        ("cosine", 5, Decay::Cosine { final_ratio: 0.1 }),
        ("linear", 5, Decay::Linear { final_ratio: 0.0 }),
        ("wsd", 0, Decay::Wsd { cooldown_fraction: 0.2, final_ratio: 0.1 }),
    ];
    for (name, warmup_steps, decay) in kinds {
        let config = ScheduleConfig { lr: 1.0, warmup_steps, decay };
        let schedule = Schedule::new(config, STEPS).unwrap();
        let found: Vec<f64> = (0..STEPS).map(|step| schedule.lr(step)).collect();
        let key = format!("schedule.{name}");
        check(&found, &fixture.get(&key), SCHEDULE_TOLERANCE, &key);
    }
}
