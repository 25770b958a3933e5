//! Random tensors keyed by (seed, name), the same on every rank.

use grove_optim::Role;
use tch::Tensor;

use crate::model::init;
use crate::model::units::{Init, ParamSpec};

/// Independent normal values of mean 0 and this deviation.
///
/// # Shapes
/// Returns `shape`, f64
pub(super) fn normal(seed: u64, name: &str, shape: &[i64], std: f64) -> Tensor {
    let (name, shape) = (format!("growth/{name}"), shape.to_vec());
    let mut values = vec![0.0; shape.iter().product::<i64>() as usize];
    let param =
        ParamSpec { name, shape: shape.clone(), role: Role::Matrix, init: Init::Normal(std) };
    init::fill(seed, &param, &mut values);
    Tensor::from_slice(&values).view(shape.as_slice())
}
