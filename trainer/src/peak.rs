//! The arithmetic that a rank can do at most, against which MFU is stated.

use std::time::Instant;

use tch::{Cuda, Device, Kind, Tensor};

use crate::model::compute::Compute;

/// FLOP/s of this rank's threads (or GPU) in a square matrix product in the compute dtype: the
/// best of five, after a first one that warms up.
///
/// It is a measured bound, not a data sheet's: on the CPU products of 1024, on a GPU of 8192.
pub fn measure(compute: &Compute) -> f64 {
    const TRIALS: usize = 5;
    let size = if compute.device == Device::Cpu { 1024 } else { 8192 };
    let matrix = Tensor::ones([size, size], (Kind::Float, compute.device)).to_kind(compute.kind);
    let seconds = |_| {
        let start = Instant::now();
        let product = compute.product(&matrix, &matrix);
        if let Device::Cuda(index) = compute.device {
            Cuda::synchronize(index as i64);
        }
        drop(product);
        start.elapsed().as_secs_f64()
    };
    let best = (0..=TRIALS).map(seconds).skip(1).fold(f64::INFINITY, f64::min);
    2.0 * (size as f64).powi(3) / best
}
