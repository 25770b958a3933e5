//! The norm by libtorch's operators, as on a GPU, against the CPU's kernel, on tensors of the CPU.

use grove_optim::{AdamWConfig, RuleConfig, StateDtype};
use grove_parallel::LocalCollective;

use super::*;
use crate::model::config::ModelConfig;
use crate::model::units::UnitMap;
use crate::rules::Rules;
use crate::sharding::Placement;
use crate::state::RunState;

/// Leaves of 256 squares are added in f64 in another order.
const ROUNDING: f64 = 1e-13;

const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 37, "hidden_size": 24,
    "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 12, "max_position_embeddings": 4, "rms_norm_eps": 0.01,
    "rope_theta": 100.0, "tie_word_embeddings": false, "initializer_range": 0.02}"#;

/// A small model's units with gradients of all sizes.
fn units(compute: &Compute) -> Vec<UnitState> {
    let config = ModelConfig::from_hf_json(LLAMA).expect("a known family");
    let (eps, weight_decay, state_dtype) = (1e-8, 0.1, StateDtype::Accumulation);
    let adamw = AdamWConfig { beta1: 0.9, beta2: 0.95, eps, weight_decay, state_dtype };
    let rules = Rules::all(RuleConfig::AdamW(adamw).build().expect("valid hyper-parameters"));
    let home = (&Placement::alone(), Device::Cpu);
    let state = RunState::allocate(compute, &UnitMap::new(&config).units, &rules, home);
    let units = state.expect("a layout").units;
    for (index, unit) in units.iter().enumerate() {
        let grads = Tensor::randn_like(&unit.grads) * 10f64.powi(index as i32 * 4 - 8);
        unit.grads.shallow_clone().copy_(&grads);
    }
    units
}

fn by_tensors(units: &[UnitState]) -> f64 {
    let (mut readback, mut clock) = (Readback::new(), Clock::new());
    let norm = SquaredNorm(Part::Asked(ask_leaves(units, &mut readback)));
    let alone = LocalCollective::new();
    let sharding = Sharding::new(Placement::alone(), &alone).expect("one rank");
    let found = norm.finish(&readback.fetch(&mut clock), &sharding).expect("one rank");
    assert_eq!(clock.take_readbacks(), 1);
    found
}

#[test]
fn leaves_from_a_device_are_the_kernels_norm() {
    let _no_graph = tch::no_grad_guard();
    tch::manual_seed(5);
    for kind in [Kind::Float, Kind::Double] {
        let compute = Compute::new(Device::Cpu, kind, 1);
        let units = units(&compute);
        let mut readback = Readback::new();
        let alone = LocalCollective::new();
        let sharding = Sharding::new(Placement::alone(), &alone).expect("one rank");
        let norm = SquaredNorm::begin(&compute, &units, &mut readback);
        let arrived = readback.fetch(&mut Clock::new());
        let expected = norm.finish(&arrived, &sharding).expect("one rank");
        let found = by_tensors(&units);
        assert!((found / expected - 1.0).abs() < ROUNDING, "{kind:?}: {found}, not {expected}");
    }
}

#[test]
fn one_infinite_or_undefined_element_is_found() {
    let _no_graph = tch::no_grad_guard();
    let compute = Compute::new(Device::Cpu, Kind::Float, 1);
    for value in [f64::NAN, f64::INFINITY] {
        let units = units(&compute);
        let last = units.last().expect("a head");
        // The last element of a parameter that does not end with a whole leaf.
        let segment = last.segments.last().expect("a parameter");
        let _ = last.grads.narrow(0, segment.range.end as i64 - 1, 1).fill_(value);
        assert!(!by_tensors(&units).is_finite(), "{value} went unseen");
    }
}
