//! Fifty steps and four schedules against independent implementations; the fixtures come from
//! `scripts/fixtures_optim.py`, which names them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use grove_optim::{
    AdamW8bitConfig, AdamWConfig, CodeBook, Decay, Elements, Groups, HessianEstimate,
    Lion8bitConfig, LionConfig, Real, Role, Rule, RuleConfig, Schedule, ScheduleConfig,
    ScheduleFreeConfig, SophiaConfig, Start, StateSlice, StateSpec, StepNumbers, Storage, Working,
    clip_scale, squared_norm,
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

    /// A tensor of any dtype, flat, as f64 (exact).
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
            safetensors::Dtype::U8 => view.data().iter().map(|&c| f64::from(c)).collect(),
            other => panic!("{name} has dtype {other:?}"),
        }
    }
}

/// A state buffer that owns its memory.
enum State<T> {
    Values(Vec<T>),
    Codes(Vec<u8>),
    BlockScale(Vec<f32>),
}

impl<T: Real> State<T> {
    fn new(spec: &StateSpec, master: &[T]) -> Self {
        let len = spec.storage.num_elements(master.len());
        match (spec.storage, spec.kind.start()) {
            (Storage::Accumulation, Start::Zero) => Self::Values(vec![T::ZERO; len]),
            (Storage::Accumulation, Start::Master) => Self::Values(master.to_vec()),
            (Storage::Codes, _) => Self::Codes(vec![0; len]),
            (Storage::BlockScale, _) => Self::BlockScale(vec![0.0; len]),
            (Storage::Bf16, _) => panic!("no parity case stores bf16"),
        }
    }

    fn slice(&mut self) -> StateSlice<'_, T> {
        match self {
            Self::Values(values) => StateSlice::Values(values),
            Self::Codes(codes) => StateSlice::Codes(codes),
            Self::BlockScale(scales) => StateSlice::BlockScale(scales),
        }
    }

    fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::Values(values) => values.iter().map(|v| v.to_f64()).collect(),
            Self::Codes(codes) => codes.iter().map(|&c| f64::from(c)).collect(),
            Self::BlockScale(scales) => scales.iter().map(|&s| f64::from(s)).collect(),
        }
    }

    fn values(&self) -> &[T] {
        match self {
            Self::Values(values) => values,
            _ => panic!("the state is quantized"),
        }
    }
}

struct Param<T> {
    name: &'static str,
    role: Role,
    master: Vec<T>,
    grads: Vec<T>,
    state: Vec<State<T>>,
}

impl<T: Real> Param<T> {
    fn new(fixture: &Fixture, rule: &Rule, name: &'static str, role: Role) -> Self {
        let master: Vec<T> = to(&fixture.get(&format!("start.{name}")));
        // A small parameter in a quantized rule's quantized form: a fixture's size is its price.
        let specs = rule.state_specs(usize::MAX);
        let state = specs.iter().map(|spec| State::new(spec, &master)).collect();
        Self { name, role, grads: to(&fixture.get(&format!("grad.{name}"))), master, state }
    }

    /// The gradient of a step. A fixture of fewer repeats them, ever smaller by exact factors.
    fn grad(&self, step: u64) -> Vec<T> {
        let n = self.master.len();
        let num_grads = self.grads.len() / n;
        let row = step as usize % num_grads;
        let factor = if num_grads < STEPS as usize { 0.5_f64.powi(step as i32 / 10) } else { 1.0 };
        let factor = T::from_f64(factor);
        self.grads[row * n..(row + 1) * n].iter().map(|&g| g * factor).collect()
    }
}

/// What a rule is run with.
struct Case {
    rule: Rule,
    schedule: ScheduleConfig,
    params: &'static [(&'static str, Role)],
}

const TWO_PARAMS: &[(&str, Role)] = &[("matrix", Role::Matrix), ("bias", Role::Bias)];
const ONE_PARAM: &[(&str, Role)] = &[("block", Role::Matrix)];

impl Case {
    fn new(config: RuleConfig, peak: f64) -> Self {
        let decay = Decay::Cosine { final_ratio: 0.1 };
        let schedule = ScheduleConfig { lr: peak, warmup_steps: 5, decay };
        Self { rule: config.build().unwrap(), schedule, params: TWO_PARAMS }
    }

    fn run_both(&self) {
        run::<f64>(self, "f64", F64_TOLERANCE);
        run::<f32>(self, "f32", F32_TOLERANCE);
    }
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

fn run<T: Real>(case: &Case, label: &str, tolerance: f64) {
    let (fixture, rule) = (Fixture::load(), &case.rule);
    let schedule = Schedule::new(case.schedule, STEPS).unwrap();
    let groups = Groups::default();
    let mut params: Vec<_> = case
        .params
        .iter()
        .map(|&(name, role)| Param::<T>::new(&fixture, rule, name, role))
        .collect();
    let mut num_clipped = 0;
    for step in 0..STEPS {
        let sum: f64 = params.iter().map(|p| squared_norm(&p.grad(step))).sum();
        let scale = clip_scale(sum.sqrt(), 1.0);
        num_clipped += u64::from(scale < 1.0);
        let numbers = StepNumbers {
            lr: schedule.lr(step),
            grad_scale: scale,
            step: step + 1,
            averaging_weight: schedule.averaging_weight(step),
            rounding_seed: 0,
        };
        for param in &mut params {
            fold_estimate(rule, param, step);
            let grad = param.grad(step);
            let elements = Elements {
                grad: &grad,
                master: &mut param.master,
                state: param.state.iter_mut().map(State::slice).collect(),
                working: Working::None,
                first: 0,
            };
            rule.update(elements, &rule.scalars(groups.of(param.role), &numbers)).unwrap();
            if [1, 10, STEPS].contains(&(step + 1)) {
                let key = format!("{}.{label}.{}.step{}", rule.name(), param.name, step + 1);
                check(&param.master, &fixture.get(&key), tolerance, &key);
            }
        }
    }
    assert!(0 < num_clipped && num_clipped < STEPS, "the fixture must clip some steps, not all");
    for param in &params {
        let key = |what| format!("{}.{label}.{}.{what}", rule.name(), param.name);
        for (spec, state) in rule.state_specs(usize::MAX).iter().zip(&param.state) {
            let key = key(spec.kind.name());
            check(&state.to_f64(), &fixture.get(&key), tolerance, &key);
        }
        if let Rule::ScheduleFree(rule) = rule {
            let mut x = param.master.clone();
            rule.eval_point(&param.master, param.state[0].values(), &mut x).unwrap();
            check(&x, &fixture.get(&key("eval")), tolerance, &key("eval"));
        }
    }
}

/// Sophia's Hessian takes another step's gradient as an estimate, every tenth step.
fn fold_estimate<T: Real>(rule: &Rule, param: &mut Param<T>, step: u64) {
    let Rule::Sophia(sophia) = rule else { return };
    if !step.is_multiple_of(10) {
        return;
    }
    let sampled = param.grad((step + 25) % STEPS);
    let estimate = HessianEstimate::GaussNewtonBartlett { grad_scale: 1.0, num_tokens: 64.0 };
    let State::Values(hessian) = &mut param.state[1] else { panic!("the Hessian is quantized") };
    sophia.fold_estimate(hessian, &sampled, estimate).unwrap();
}

#[test]
fn adamw_is_that_of_torch() {
    Case::new(RuleConfig::AdamW(AdamWConfig::default()), 0.01).run_both();
}

#[test]
fn lion_is_that_of_lion_pytorch_and_optax() {
    let config = LionConfig { weight_decay: 1.0, ..LionConfig::default() };
    Case::new(RuleConfig::Lion(config), 0.003).run_both();
}

#[test]
fn sophia_is_that_of_the_paper_and_optax() {
    Case::new(RuleConfig::Sophia(SophiaConfig::default()), 0.01).run_both();
}

#[test]
fn schedule_free_is_that_of_its_package() {
    let config = RuleConfig::ScheduleFree(ScheduleFreeConfig::default());
    let schedule = ScheduleConfig { lr: 0.02, warmup_steps: 5, decay: Decay::Constant };
    Case { schedule, ..Case::new(config, 0.02) }.run_both();
}

#[test]
fn adamw_8bit_is_the_formula_between_the_quantizers_of_bitsandbytes() {
    let config = RuleConfig::AdamW8bit(AdamW8bitConfig::default());
    Case { params: ONE_PARAM, ..Case::new(config, 0.01) }.run_both();
}

#[test]
fn lion_8bit_is_the_formula_between_the_quantizers_of_bitsandbytes() {
    let config = Lion8bitConfig { weight_decay: 1.0, ..Lion8bitConfig::default() };
    Case { params: ONE_PARAM, ..Case::new(RuleConfig::Lion8bit(config), 0.003) }.run_both();
}

#[test]
fn code_books_and_codes_are_those_of_bitsandbytes() {
    let fixture = Fixture::load();
    let values: Vec<f32> = to(&fixture.get("quantize.values"));
    for (name, book) in [("signed", CodeBook::signed()), ("unsigned", CodeBook::unsigned())] {
        let expected: Vec<f32> = to(&fixture.get(&format!("code_book.{name}")));
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|v| v.to_bits()).collect() };
        assert_eq!(bits(book.values()), bits(&expected), "{name}");
        let values: Vec<f32> =
            values.iter().map(|v| if name == "signed" { *v } else { v.abs() }).collect();
        let mut codes = vec![0; values.len()];
        let mut scales = vec![0.0; Storage::BlockScale.num_elements(values.len())];
        book.quantize(&values, &mut codes, &mut scales).unwrap();
        let codes: Vec<f64> = codes.iter().map(|&code| f64::from(code)).collect();
        let scales: Vec<f64> = scales.iter().map(|&scale| f64::from(scale)).collect();
        assert_eq!(codes, fixture.get(&format!("quantize.{name}")), "{name}");
        assert_eq!(scales, fixture.get(&format!("quantize.{name}_absmax")), "{name}");
    }
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
