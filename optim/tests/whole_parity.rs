//! Fifty steps of the whole-matrix rules against independent implementations; the fixtures come
//! from `scripts/fixtures_whole.py`, which names them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use grove_optim::{
    AdafactorConfig, AdamMiniConfig, CameConfig, GaloreConfig, Groups, MuonConfig, MuonPrecision,
    MuonScale, Orientation, ParamFacts, Part, Real, Role, SoapConfig, WholeRule, WholeRuleConfig,
    WholeTensors, Working, clip_scale, squared_norm,
};
use safetensors::SafeTensors;
use tch::{Device, Tensor, kind::Element};

const STEPS: u64 = 50;
const WEIGHT_DECAY: f64 = 0.1;
/// Fifty steps of a few roundings each, relative to the largest element.
const F64_TOLERANCE: f64 = 1e-12;
const F32_TOLERANCE: f64 = 1e-6;
/// bf16 has 8 bits, and steps add up to a tenth of the largest element. Grove divides by the norm
/// in f32 and rounds then; torch rounds first.
const BF16_TOLERANCE: f64 = 1e-3;
/// Singular vectors and eigenvectors turn by a decomposition's rounding errors over the gaps
/// between values, a hundredth of the largest here; another LAPACK makes other errors.
const BASIS_F64_TOLERANCE: f64 = 1e-11;
const BASIS_F32_TOLERANCE: f64 = 1e-5;

const NAMES: [&str; 6] = ["tall", "wide", "square", "fused", "norm", "bias"];

struct Fixture(Vec<u8>);

impl Fixture {
    fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/whole.safetensors");
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

    fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }
}

fn facts(name: &str) -> ParamFacts {
    let out_in = |shape: &[i64], role| ParamFacts::new(shape, role, Orientation::OutIn);
    match name {
        "tall" => out_in(&[16, 6], Role::Matrix),
        "wide" => out_in(&[6, 16], Role::Matrix),
        "square" => out_in(&[8, 8], Role::Matrix),
        "norm" => out_in(&[6], Role::Norm),
        "bias" => out_in(&[13], Role::Bias),
        _ => ParamFacts::new(&[6, 24], Role::Matrix, Orientation::InOut).with_parts(
            [4, 4, 1].map(|outputs_per_block| Part { num_outputs: 8, outputs_per_block }).into(),
        ),
    }
}

fn to<T: Real>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f64(v)).collect()
}

fn check<T: Real>(found: &[T], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
    let gaps = found.iter().zip(expected).map(|(a, b)| (a.to_f64() - b).abs());
    let worst = gaps.fold(0.0_f64, |a, gap| if gap > a || gap.is_nan() { gap } else { a });
    let worst = worst / largest;
    assert!(worst <= tolerance, "{what}: off by {worst:e} of the largest element");
}

/// A rule, its oracle's key, the parameters it takes, and the tolerance of masters and states.
struct Case {
    config: WholeRuleConfig,
    oracle: String,
    names: &'static [&'static str],
    peak: f64,
    tolerance: f64,
}

struct Param<T> {
    name: &'static str,
    facts: ParamFacts,
    master: Vec<T>,
    grads: Vec<T>,
    state: Vec<Tensor>,
}

impl<T: Real + Element> Param<T> {
    fn new(fixture: &Fixture, rule: &WholeRule, name: &'static str) -> Self {
        let facts = facts(name);
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (T::KIND, Device::Cpu));
        let state = rule.state_specs(&facts).iter().map(|spec| zeros(&spec.shape)).collect();
        let master = to(&fixture.get(&format!("start.{name}")));
        let grads = to(&fixture.get(&format!("grad.{name}")));
        Self { name, facts, master, grads, state }
    }

    /// One step, with the update applied in two pieces as two ranks would.
    fn step(&mut self, rule: &WholeRule, lr: f64, scale: f64, step: u64) {
        let groups = Groups::default();
        let scalars = rule.scalars(groups.of(self.facts.role), lr, scale, step);
        let n = self.master.len();
        let grad = Tensor::from_slice(&self.grads[(step as usize - 1) * n..step as usize * n]);
        let master = Tensor::from_slice(&self.master);
        let master = rule.needs_master().then_some(&master);
        let tensors = WholeTensors { grad: &grad, master, state: &mut self.state };
        let update = rule.update(tensors, &self.facts, &scalars).unwrap();
        assert_eq!(update.size(), self.facts.shape);
        let update = Vec::<T>::try_from(update.contiguous().view(-1)).unwrap();
        let (head, tail) = self.master.split_at_mut(n / 3);
        let order = rule.decay_order();
        order.apply(head, &update[..n / 3], Working::None, &scalars).unwrap();
        order.apply(tail, &update[n / 3..], Working::None, &scalars).unwrap();
    }
}

fn run<T: Real + Element>(case: &Case) {
    let fixture = Fixture::load();
    let rule = case.config.build().unwrap();
    let rates = fixture.get("rates");
    let all: Vec<Vec<f64>> = NAMES.iter().map(|n| fixture.get(&format!("grad.{n}"))).collect();
    let mut params: Vec<Param<T>> =
        case.names.iter().map(|name| Param::new(&fixture, &rule, name)).collect();
    let mut num_clipped = 0;
    for step in 1..=STEPS {
        let range = |n: usize| (step as usize - 1) * n..step as usize * n;
        let norms = all.iter().map(|g| squared_norm(&g[range(g.len() / STEPS as usize)]));
        let scale = clip_scale(norms.sum::<f64>().sqrt(), 1.0);
        num_clipped += u64::from(scale < 1.0);
        for param in &mut params {
            param.step(&rule, case.peak * rates[step as usize - 1], scale, step);
            if [1, 10, STEPS].contains(&step) {
                let key = format!("{}.{}.step{step}", case.oracle, param.name);
                check(&param.master, &fixture.get(&key), case.tolerance, &key);
            }
        }
    }
    assert!(0 < num_clipped && num_clipped < STEPS, "the fixture must clip some steps, not all");
    for param in &params {
        for (spec, state) in rule.state_specs(&param.facts).iter().zip(&param.state) {
            let key = format!("{}.{}.{}", case.oracle, param.name, spec.kind.name());
            if fixture.has(&key) {
                let found = Vec::<T>::try_from(state.contiguous().view(-1)).unwrap();
                check(&found, &fixture.get(&key), case.tolerance, &key);
            } else {
                // Bases and what is kept in them, up to signs: no oracle can say.
                assert!(matches!(rule, WholeRule::Soap(_)), "{key} is not in the fixture");
            }
        }
    }
}

/// Both dtypes, each against the oracle of that dtype.
fn run_both(config: WholeRuleConfig, oracle: &str, names: &'static [&'static str], peak: f64) {
    let case = |label, tolerance| {
        let oracle = format!("{oracle}.{label}");
        Case { config, oracle, names, peak, tolerance }
    };
    run::<f64>(&case("f64", F64_TOLERANCE));
    run::<f32>(&case("f32", F32_TOLERANCE));
}

#[test]
fn adafactor_is_that_of_torch() {
    let config = AdafactorConfig { weight_decay: WEIGHT_DECAY, ..AdafactorConfig::default() };
    let config = WholeRuleConfig::Adafactor(config);
    run_both(config, "adafactor", &["tall", "wide", "bias"], 0.3);
}

#[test]
fn came_is_that_of_its_authors() {
    let config = CameConfig {
        beta2: 0.95,
        beta3: 0.99,
        weight_decay: WEIGHT_DECAY,
        ..CameConfig::default()
    };
    run_both(WholeRuleConfig::Came(config), "came", &["tall", "wide", "bias"], 0.01);
}

#[test]
fn adam_mini_is_that_of_its_authors() {
    let config = WholeRuleConfig::AdamMini(AdamMiniConfig::default());
    run_both(config, "adam_mini", &["fused", "tall", "norm", "bias"], 0.01);
}

#[test]
fn muon_is_that_of_torch_without_its_cast() {
    for (scale, oracle) in
        [(MuonScale::Original, "muon.original"), (MuonScale::MatchRms, "muon.match_rms")]
    {
        let config = WholeRuleConfig::Muon(MuonConfig { scale, ..MuonConfig::default() });
        run_both(config, oracle, &["tall", "wide", "fused"], 0.02);
    }
}

#[test]
fn muon_in_bf16_is_that_of_torch() {
    let config = MuonConfig { precision: MuonPrecision::Bf16, ..MuonConfig::default() };
    run::<f32>(&Case {
        config: WholeRuleConfig::Muon(config),
        oracle: "muon.bf16.f32".to_owned(),
        names: &["tall", "wide", "fused"],
        peak: 0.02,
        tolerance: BF16_TOLERANCE,
    });
}

#[test]
fn galore_is_that_of_its_authors() {
    let config = GaloreConfig {
        rank: 4,
        refresh_every: 20,
        weight_decay: WEIGHT_DECAY,
        ..GaloreConfig::default()
    };
    let case = |label, tolerance| Case {
        config: WholeRuleConfig::Galore(config),
        oracle: format!("galore.{label}"),
        names: &["tall", "wide"],
        peak: 0.02,
        tolerance,
    };
    run::<f64>(&case("f64", BASIS_F64_TOLERANCE));
    run::<f32>(&case("f32", BASIS_F32_TOLERANCE));
}

#[test]
fn soap_is_the_papers_algorithm() {
    let config =
        SoapConfig { max_basis_dim: 10, weight_decay: WEIGHT_DECAY, ..SoapConfig::default() };
    let case = |tolerance| Case {
        config: WholeRuleConfig::Soap(config),
        oracle: "soap.f64".to_owned(),
        names: &["square", "wide"],
        peak: 0.02,
        tolerance,
    };
    run::<f64>(&case(BASIS_F64_TOLERANCE));
    run::<f32>(&case(BASIS_F32_TOLERANCE));
}
