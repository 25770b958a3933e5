//! Drawn labels: hand-derived ones, both paths, and their frequencies.

use super::{IGNORED_TARGET, labels};
use crate::model::compute::Compute;
use tch::{Device, Kind, Tensor};

/// Probabilities 1/2, 1/8, 3/8 and, in the second row, 0, 1, 0.
fn logits() -> Tensor {
    let row = [0.5f64.ln(), 0.125f64.ln(), 0.375f64.ln()];
    let certain = [-2000.0, 0.0, -2000.0];
    Tensor::from_slice(&[row, row, row, certain, row].concat()).view([5, 3])
}

#[test]
fn labels_are_the_hand_derived_ones_on_every_path() {
    let targets = Tensor::from_slice(&[0i64, 0, 0, 2, IGNORED_TARGET]);
    let uniforms = Tensor::from_slice(&[0.49f64, 0.51, 0.999, 0.999, 0.3]);
    for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
        let compute = Compute::new(Device::Cpu, kind, 2);
        let drawn = labels(&compute, &logits().to_kind(kind), &targets, &uniforms);
        let drawn: Vec<i64> = Vec::try_from(drawn).expect("labels");
        assert_eq!(drawn, [0, 1, 2, 1, IGNORED_TARGET], "{kind:?}");
    }
}

#[test]
fn evenly_spaced_numbers_draw_in_proportion() {
    const N: i64 = 1000;
    let compute = Compute::new(Device::Cpu, Kind::Float, 1);
    let rows = logits().narrow(0, 0, 1).to_kind(Kind::Float).repeat([N, 1]);
    let uniforms: Vec<f64> = (0..N).map(|i| (i as f64 + 0.5) / N as f64).collect();
    let targets = Tensor::zeros([N], (Kind::Int64, Device::Cpu));
    let drawn = labels(&compute, &rows, &targets, &Tensor::from_slice(&uniforms));
    let drawn: Vec<i64> = Vec::try_from(drawn).expect("labels");
    let count = |token| drawn.iter().filter(|&&label| label == token).count();
    assert_eq!([count(0), count(1), count(2)], [500, 125, 375]);
}
