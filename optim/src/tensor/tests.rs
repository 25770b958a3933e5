//! The tensor path against the slice path, on the CPU.

use super::squared_norm_tensor;
use crate::{
    AdamWConfig, Elements, LionConfig, Real, RuleConfig, Scalars, TensorElements, Working,
    squared_norm,
};
use half::bf16;
use tch::{Kind, Tensor, kind::Element};

/// libtorch may fuse multiply-adds, so each operation may differ by one rounding; over 10 steps a
/// few of them add up. Relative to the largest element.
const F32_TOLERANCE: f64 = 5e-7;
const F64_TOLERANCE: f64 = 1e-15;

fn wave<T: Real>(n: usize, step: usize) -> Vec<T> {
    (0..n).map(|i| T::from_f64(((i * 7 + step * 13) as f64 * 0.37).sin())).collect()
}

fn gap<T: Real + Element>(slice: &[T], tensor: &Tensor) -> f64 {
    let tensor = Vec::<T>::try_from(tensor).unwrap();
    let largest = slice.iter().fold(1e-12, |a: f64, x| a.max(x.to_f64().abs()));
    slice.iter().zip(tensor).map(|(a, b)| (a.to_f64() - b.to_f64()).abs()).fold(0.0, f64::max)
        / largest
}

fn paths_agree<T: Real + Element>(config: RuleConfig, tolerance: f64) {
    const N: usize = 1001;
    let rule = config.build().unwrap();
    let num_states = rule.state_kinds().len();
    let mut master = wave::<T>(N, 0);
    let mut states = vec![vec![T::from_f64(0.0); N]; num_states];
    let mut copy = vec![bf16::ZERO; N];
    let mut tensor = Tensor::from_slice(&master);
    let mut tensor_states: Vec<Tensor> = states.iter().map(|s| Tensor::from_slice(s)).collect();
    let mut tensor_copy = Tensor::zeros([N as i64], (Kind::BFloat16, tch::Device::Cpu));
    for step in 1..=10 {
        let grad = wave::<T>(N, step);
        let scalars = Scalars { lr: 0.01, weight_decay: 0.1, grad_scale: 0.3, step: step as u64 };
        let elements = Elements {
            master: &mut master,
            grad: &grad,
            state: states.iter_mut().map(|s| &mut s[..]).collect(),
            working: Working::Bf16(&mut copy),
        };
        rule.update(elements, &scalars).unwrap();
        let tensor_elements = TensorElements {
            master: &mut tensor,
            grad: &Tensor::from_slice(&grad),
            state: tensor_states.iter_mut().collect(),
            working: Some(&mut tensor_copy),
        };
        rule.update_tensor(tensor_elements, &scalars).unwrap();
    }
    assert!(gap(&master, &tensor) < tolerance, "master: {:e}", gap(&master, &tensor));
    for (state, tensor) in states.iter().zip(&tensor_states) {
        assert!(gap(state, tensor) < tolerance, "state: {:e}", gap(state, tensor));
    }
    let cast = tensor.to_kind(Kind::BFloat16);
    assert!(tensor_copy.equal(&cast), "the working copy is the rounded master");
}

#[test]
fn adamw_agrees_with_the_slice_path() {
    paths_agree::<f32>(RuleConfig::AdamW(AdamWConfig::default()), F32_TOLERANCE);
    paths_agree::<f64>(RuleConfig::AdamW(AdamWConfig::default()), F64_TOLERANCE);
}

#[test]
fn lion_agrees_with_the_slice_path() {
    paths_agree::<f32>(RuleConfig::Lion(LionConfig::default()), F32_TOLERANCE);
    paths_agree::<f64>(RuleConfig::Lion(LionConfig::default()), F64_TOLERANCE);
}

#[test]
fn non_finite_gradients_act_as_in_the_slice_path() {
    for config in
        [RuleConfig::AdamW(AdamWConfig::default()), RuleConfig::Lion(LionConfig::default())]
    {
        let rule = config.build().unwrap();
        let grad = [1.0_f32, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0];
        let mut master = [1.0_f32; 5];
        let mut states = vec![vec![0.0_f32; 5]; rule.state_kinds().len()];
        let mut tensor = Tensor::from_slice(&master);
        let mut tensor_states: Vec<Tensor> = states.iter().map(|s| Tensor::from_slice(s)).collect();
        let scalars = Scalars { lr: 0.01, weight_decay: 0.1, grad_scale: 1.0, step: 1 };
        let elements = Elements {
            master: &mut master,
            grad: &grad,
            state: states.iter_mut().map(|s| &mut s[..]).collect(),
            working: Working::None,
        };
        rule.update(elements, &scalars).unwrap();
        let tensor_elements = TensorElements {
            master: &mut tensor,
            grad: &Tensor::from_slice(&grad),
            state: tensor_states.iter_mut().collect(),
            working: None,
        };
        rule.update_tensor(tensor_elements, &scalars).unwrap();
        for (slice, tensor) in master.iter().zip(Vec::<f32>::try_from(&tensor).unwrap()) {
            assert_eq!(slice.is_nan(), tensor.is_nan(), "{}: {slice} {tensor}", rule.name());
        }
    }
}

#[test]
fn lengths_are_named() {
    let rule = RuleConfig::Lion(LionConfig::default()).build().unwrap();
    let mut master = Tensor::from_slice(&[1.0_f32; 4]);
    let mut m = Tensor::from_slice(&[0.0_f32; 3]);
    let elements = TensorElements {
        master: &mut master,
        grad: &Tensor::from_slice(&[1.0_f32; 4]),
        state: vec![&mut m],
        working: None,
    };
    let scalars = Scalars { lr: 0.01, weight_decay: 0.1, grad_scale: 1.0, step: 1 };
    let error = rule.update_tensor(elements, &scalars).unwrap_err().to_string();
    assert!(error.starts_with("buffer exp_avg has 3 elements where master has 4"), "{error}");
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
