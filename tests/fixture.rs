//! Tiny models with their values as `scripts/fixtures.py` stored them, and ways to run ours on them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use grove::Clock;
use grove::gradients::Round;
use grove::model::block::Recompute;
use grove::model::compute::Compute;
use grove::model::config::ModelConfig;
use grove::model::decoder::{Decoder, RunOptions};
use grove::model::init::fill;
use grove::model::units::{Init, ParamSpec, UnitMap};
use grove::pass::{Layers, Tokens, Traffic, micro_step};
use grove::rules::Rules;
use grove::sharding::{Placement, Sharding};
use grove::state::{RunState, UnitState};
use grove_optim::{AdamWConfig, Rule, RuleConfig, StateDtype};
use grove_parallel::LocalCollective;
use safetensors::SafeTensors;
use tch::{Device, Kind, Tensor};

/// The fixtures: both families, MHA, GQA and MQA, tied and untied heads.
pub(crate) const NAMES: [&str; 4] =
    ["llama_mha_untied", "llama_gqa_tied", "llama_mqa_untied", "gpt2_tied"];

/// The rule that the fixtures' ten steps were made with.
pub(crate) fn adamw() -> Rule {
    let (eps, weight_decay, state_dtype) = (1e-8, 0.1, StateDtype::Accumulation);
    let config = AdamWConfig { beta1: 0.9, beta2: 0.95, eps, weight_decay, state_dtype };
    RuleConfig::AdamW(config).build().expect("valid hyper-parameters")
}

/// Standard deviation of the parameters of a made model.
const MADE_STD: f64 = 0.5;

/// One stored model.
pub(crate) struct Fixture {
    pub(crate) config: ModelConfig,
    tensors: BTreeMap<String, Tensor>,
}

impl Fixture {
    pub(crate) fn load(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join(format!("../tests/fixtures/{name}.safetensors"));
        let bytes = std::fs::read(path).expect("the fixtures are committed");
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let metadata = metadata.metadata().as_ref().expect("fixtures have metadata").clone();
        let config = ModelConfig::from_hf_json(&metadata["config"]).expect("a known family");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
            let kind = match view.dtype() {
                safetensors::Dtype::F64 => Kind::Double,
                safetensors::Dtype::F32 => Kind::Float,
                safetensors::Dtype::I64 => Kind::Int64,
                other => panic!("{name} is {other:?}"),
            };
            (name, Tensor::from_data_size(view.data(), &shape, kind))
        });
        Self { config, tensors: tensors.collect() }
    }

    /// A model of this config with weights at which nothing is trivial, and tokens.
    pub(crate) fn drawn(config: &ModelConfig, seed: i64) -> Self {
        tch::manual_seed(seed);
        let spec = config.spec();
        let shape = [2, spec.max_positions as i64 + 1];
        let tokens = Tensor::randint(spec.vocab_size as i64, shape, (Kind::Int64, Device::Cpu));
        let mut tensors = BTreeMap::from([("tokens".to_owned(), tokens)]);
        for param in UnitMap::new(config).units.iter().flat_map(|unit| &unit.params) {
            let noise = Tensor::randn(param.shape.as_slice(), (Kind::Double, Device::Cpu)) * 0.3;
            let centered_at_one = param.init == Init::Ones;
            let values = if centered_at_one { noise + 1.0 } else { noise };
            tensors.insert(format!("param.{}", param.name), values);
        }
        Self { config: config.clone(), tensors }
    }

    /// A model of this `config.json` whose parameters are far enough from each other that none of its
    /// parts is linear and no two predictions are alike.
    pub(crate) fn made(config: &str) -> Self {
        let config = ModelConfig::from_hf_json(config).expect("a known family");
        let compute = Compute::new(Device::Cpu, Kind::Double, 1);
        let sequence_length = config.spec().max_positions;
        let options = RunOptions { sequence_length, recompute: Recompute::None, logits_rows: 2 };
        let mut tensors = BTreeMap::new();
        for unit in Decoder::new(&compute, &config, options).units() {
            for param in &unit.params {
                let mut values = vec![0.0; param.shape.iter().product::<i64>() as usize];
                let drawn = ParamSpec { init: Init::Normal(MADE_STD), ..param.clone() };
                fill(3, &drawn, &mut values);
                let values = Tensor::from_slice(&values).view(param.shape.as_slice());
                tensors.insert(format!("param.{}", param.name), values);
            }
        }
        Self { config, tensors }
    }

    pub(crate) fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the fixture has {name}"))
    }

    /// The stored parameters in f64, by name.
    pub(crate) fn params(&self) -> BTreeMap<String, Tensor> {
        let params = self.tensors.iter().filter_map(|(name, tensor)| {
            Some((name.strip_prefix("param.")?.to_owned(), tensor.to_kind(Kind::Double)))
        });
        params.collect()
    }
}

/// Our model with a fixture's parameters.
pub(crate) struct Subject {
    pub(crate) compute: Compute,
    pub(crate) model: Decoder,
    pub(crate) state: RunState,
}

impl Subject {
    pub(crate) fn new(fixture: &Fixture, kind: Kind, recompute: Recompute) -> Self {
        Self::with_rules(fixture, kind, recompute, &Rules::all(adamw()))
    }

    pub(crate) fn with_rules(
        fixture: &Fixture,
        kind: Kind,
        recompute: Recompute,
        rules: &Rules,
    ) -> Self {
        Self::of((&fixture.config, &fixture.params()), kind, recompute, rules)
    }

    /// Any model of these weights.
    pub(crate) fn of(
        (config, weights): (&ModelConfig, &BTreeMap<String, Tensor>),
        kind: Kind,
        recompute: Recompute,
        rules: &Rules,
    ) -> Self {
        tch::set_num_threads(2);
        let compute = Compute::new(Device::Cpu, kind, 2);
        let options = RunOptions {
            sequence_length: config.spec().max_positions,
            recompute,
            // Fewer rows than positions, so that the head works in several chunks.
            logits_rows: 10,
        };
        let model = Decoder::new(&compute, config, options);
        let home = (&Placement::alone(), Device::Cpu);
        let state = RunState::allocate(&compute, model.units(), rules, home);
        let mut state = state.expect("a layout");
        for unit in &state.units {
            for place in unit.layout.params() {
                let values = weights[&place.name].contiguous().view(-1);
                part(&unit.masters, place).copy_(&values);
            }
        }
        state.round_masters();
        Self { compute, model, state }
    }

    /// The layers with their parameters.
    pub(crate) fn layers(&self) -> Layers<'_> {
        Layers { model: &self.model, compute: &self.compute, units: &self.state.units }
    }

    /// Gradients of the summed loss of `[B, S + 1]` tokens; returns the summed loss.
    pub(crate) fn forward_backward(&self, tokens: &Tensor, round: Round) -> f64 {
        let (batch, _) = tokens.size2().expect("tokens are [B, S + 1]");
        let rows: Vec<i64> = Vec::try_from(tokens.reshape([-1])).expect("ids");
        let rows: Vec<u32> = rows.into_iter().map(|id| id as u32).collect();
        self.forward_backward_of(&Tokens::new(&self.compute, &rows, batch as usize), round)
    }

    /// Gradients of the summed loss of a micro-batch; returns the summed loss.
    pub(crate) fn forward_backward_of(&self, tokens: &Tokens, round: Round) -> f64 {
        alone(&self.state.units, |traffic| {
            let loss = micro_step(self.layers(), tokens, round, traffic, &mut Clock::new());
            traffic.sums.finish().expect("no collective, no error");
            loss.expect("no collective, no error").double_value(&[])
        })
    }
}

/// Runs `work` with the traffic of one rank.
pub(crate) fn alone<T>(units: &[UnitState], work: impl FnOnce(&mut Traffic<'_>) -> T) -> T {
    let local = LocalCollective::new();
    let sharding = Sharding::new(Placement::alone(), &local).expect("one rank");
    work(&mut Traffic::new(sharding, units, 0))
}

/// The part of a flat buffer that holds a parameter.
pub(crate) fn part(flat: &Tensor, place: &grove_parallel::layout::ParamPlace) -> Tensor {
    flat.narrow(0, place.offset as i64, place.numel as i64)
}

/// Every parameter's part of one of the units' buffers, by name.
pub(crate) fn by_name(
    units: &[UnitState],
    buffer: impl Fn(&UnitState) -> &Tensor,
) -> BTreeMap<String, Tensor> {
    units
        .iter()
        .flat_map(|unit| unit.layout.params().iter().map(move |place| (unit, place)))
        .map(|(unit, place)| {
            let values = part(buffer(unit), place).view(place.shape.as_slice());
            (place.name.clone(), values)
        })
        .collect()
}

/// Norm of the difference over norm of the reference.
pub(crate) fn relative_norm_error(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let difference = found.view(-1) - expected.view(-1);
    difference.norm().double_value(&[]) / expected.norm().double_value(&[])
}

/// Largest difference over largest reference value.
pub(crate) fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let scale = expected.abs().max().double_value(&[]);
    (found.view(-1) - expected.view(-1)).abs().max().double_value(&[]) / scale
}
