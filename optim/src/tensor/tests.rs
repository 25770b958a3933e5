//! The tensor path against the slice path, on the CPU.

use super::squared_norm_tensor;
use crate::sample::{Buffers, SCALARS, Stored, rules};
use crate::{
    LionConfig, Real, Rule, RuleConfig, Scalars, StateSpec, Storage, TensorElements, squared_norm,
};
use half::bf16;
use tch::{Kind, Tensor, kind::Element};

/// libtorch may fuse multiply-adds, so each operation may differ by one rounding; over 10 steps a
/// few of them add up. Relative to the largest element.
const F32_TOLERANCE: f64 = 5e-7;
const F64_TOLERANCE: f64 = 1e-15;
/// What states of few bits may be off by where a rounding tips one: the 8 bits of a bf16 mantissa,
/// and a gap between codes.
const TIPPED: f64 = 1.0 / 64.0;

/// The tensors of one parameter.
struct Twin {
    master: Tensor,
    state: Vec<Tensor>,
    copy: Tensor,
}

fn tensor_of<T: Real + Element>(stored: &Stored<T>) -> Tensor {
    match stored {
        Stored::Values(values) => Tensor::from_slice(values),
        Stored::Bf16(values) => bf16_tensor(values),
        Stored::Codes(codes) => Tensor::from_slice(codes),
        Stored::BlockScale(scales) => Tensor::from_slice(scales),
    }
}

/// By way of f32: `Tensor::from_slice` takes bf16 for another dtype.
fn bf16_tensor(values: &[bf16]) -> Tensor {
    let values: Vec<f32> = values.iter().map(|v| v.to_f32()).collect();
    Tensor::from_slice(&values).to_kind(Kind::BFloat16)
}

impl Twin {
    fn new<T: Real + Element>(buffers: &Buffers<T>) -> Self {
        Self {
            master: Tensor::from_slice(&buffers.master),
            state: buffers.state.iter().map(tensor_of).collect(),
            copy: bf16_tensor(&buffers.copy),
        }
    }

    fn update(&mut self, rule: &Rule, grad: &Tensor, scalars: &Scalars) {
        let elements = TensorElements {
            master: &mut self.master,
            grad,
            state: self.state.iter_mut().collect(),
            working: Some(&mut self.copy),
            first: 0,
        };
        rule.update_tensor(elements, scalars).unwrap();
    }
}

fn wave<T: Real>(n: usize, step: usize) -> Vec<T> {
    (0..n).map(|i| T::from_f64(((i * 7 + step * 13) as f64 * 0.37).sin())).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(1e-12, |a, x| a.max(x.abs()))
}

/// The largest difference, over the largest element.
fn gap(slice: &[f64], tensor: &Tensor) -> f64 {
    let tensor = Vec::<f64>::try_from(tensor.to_kind(Kind::Double)).unwrap();
    assert_eq!(slice.len(), tensor.len());
    slice.iter().zip(&tensor).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest(slice)
}

/// How many numbers are not the same.
fn num_other(slice: &[f64], tensor: &Tensor) -> usize {
    let tensor = Vec::<f64>::try_from(tensor.to_kind(Kind::Double)).unwrap();
    slice.iter().zip(&tensor).filter(|(a, b)| a != b).count()
}

fn paths_agree<T: Real + Element>(rule: &Rule, tolerance: f64) {
    const N: usize = 1001;
    let specs = rule.state_specs(usize::MAX);
    let is_full = |spec: &StateSpec| spec.storage == Storage::Accumulation;
    let tipped = if specs.iter().all(is_full) { 0.0 } else { TIPPED };
    let mut buffers = Buffers::<T>::new(specs, N, 1);
    buffers.master = wave(N, 0);
    match rule {
        Rule::Sophia(_) => {
            buffers.state[1] = Stored::Values((0..N).map(|i| T::from_f64(i as f64)).collect());
        }
        Rule::ScheduleFree(_) => buffers.state[0] = Stored::Values(buffers.master.clone()),
        _ => {}
    }
    let mut twin = Twin::new(&buffers);
    for step in 1..=10 {
        buffers.grad = wave(N, step);
        let scalars = Scalars { lr: 0.01, step: step as u64, ..SCALARS };
        rule.update(buffers.elements(true), &scalars).unwrap();
        twin.update(rule, &Tensor::from_slice(&buffers.grad), &scalars);
    }
    let name = rule.name();
    let master: Vec<f64> = buffers.master.iter().map(|x| x.to_f64()).collect();
    // A tipped state moves the parameter by its share of a step.
    let found = gap(&master, &twin.master);
    assert!(found < tolerance + 0.01 * tipped, "{name} master: {found:e}");
    for ((spec, state), tensor) in specs.iter().zip(&buffers.state).zip(&twin.state) {
        let found = gap(&state.to_f64(), tensor);
        assert!(found < tolerance + tipped, "{name} {}: {found:e}", spec.kind.name());
        if !is_full(spec) {
            let num_other = num_other(&state.to_f64(), tensor);
            assert!(num_other <= N / 200, "{name} {}: {num_other} differ", spec.kind.name());
        }
    }
    let cast = twin.master.to_kind(Kind::BFloat16);
    assert!(twin.copy.equal(&cast), "{name}: the working copy is the rounded master");
}

#[test]
fn every_rule_agrees_with_its_slice_path() {
    for rule in rules() {
        paths_agree::<f32>(&rule, F32_TOLERANCE);
        paths_agree::<f64>(&rule, F64_TOLERANCE);
    }
}

#[test]
fn non_finite_gradients_act_as_in_the_slice_path() {
    for rule in rules() {
        let mut buffers = Buffers::<f32>::new(rule.state_specs(usize::MAX), 5, 1);
        buffers.grad = vec![1.0_f32, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0];
        let mut twin = Twin::new(&buffers);
        rule.update(buffers.elements(true), &SCALARS).unwrap();
        twin.update(&rule, &Tensor::from_slice(&buffers.grad), &SCALARS);
        let is_nan = |stored: &[f64], tensor: &Tensor| {
            let tensor = Vec::<f64>::try_from(tensor.to_kind(Kind::Double)).unwrap();
            for (slice, tensor) in stored.iter().zip(tensor) {
                assert_eq!(slice.is_nan(), tensor.is_nan(), "{}: {slice} {tensor}", rule.name());
            }
        };
        let master: Vec<f64> = buffers.master.iter().map(|x| f64::from(*x)).collect();
        is_nan(&master, &twin.master);
        for (state, tensor) in buffers.state.iter().zip(&twin.state) {
            is_nan(&state.to_f64(), tensor);
        }
    }
}

#[test]
fn random_bits_are_those_of_the_slice_path() {
    let like = Tensor::from_slice(&[0.0_f32; 600]);
    for first in [0, 256, (1 << 32) - 256, 3 << 33] {
        let rounding = SCALARS.rounding();
        let tensor = Vec::<i64>::try_from(rounding.random_tensor(first, &like).unwrap()).unwrap();
        // A slice is filled block by block, for a fill does not cross a multiple of 2^32.
        let mut bits = vec![0_u32; 600];
        for (i, bits) in bits.chunks_mut(256).enumerate() {
            rounding.fill(first + 256 * i, bits);
        }
        assert!(tensor.iter().zip(&bits).all(|(a, b)| *a == i64::from(*b)), "from {first}");
    }
}

#[test]
fn refusals_are_named() {
    let rule = RuleConfig::Lion(LionConfig::default()).build().unwrap();
    let mut master = Tensor::from_slice(&[1.0_f32; 4]);
    let mut refused = |mut m: Tensor, first| {
        let elements = TensorElements {
            master: &mut master,
            grad: &Tensor::from_slice(&[1.0_f32; 4]),
            state: vec![&mut m],
            working: None,
            first,
        };
        rule.update_tensor(elements, &SCALARS).unwrap_err().to_string()
    };
    let error = refused(Tensor::from_slice(&[0.0_f32; 3]), 0);
    assert!(error.starts_with("buffer exp_avg has 3 elements where the range has 4"), "{error}");
    let error = refused(bf16_tensor(&[bf16::ZERO; 4]), 0);
    assert!(error.starts_with("state exp_avg has bf16 values: expected values of"), "{error}");
}

#[test]
fn the_squared_norm_of_a_tensor_is_that_of_its_slice() {
    let values = wave::<f32>(10_000, 1);
    let tensor = squared_norm_tensor(&Tensor::from_slice(&values)).unwrap();
    assert_eq!(tensor.kind(), Kind::Double);
    let (tensor, slice) = (f64::try_from(tensor).unwrap(), squared_norm(&values));
    // Another order of 1e4 additions in f64, and a square root undone.
    assert!((tensor - slice).abs() < 1e-12 * slice, "{tensor} {slice}");
}
