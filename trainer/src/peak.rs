//! The arithmetic that a rank can do at most, against which MFU is stated.

use std::time::Instant;

use tch::{Cuda, Device, Kind, Tensor};

use crate::model::compute::{Compute, Products};

/// FLOP/s of this rank's threads (or GPU) in a square matrix product in the compute dtype: the
/// best of at least five by this crate's kernel and by libtorch each, after a first one that warms up.
///
/// It is a measured bound, not a data sheet's: on the CPU products of 1024, on a GPU of 8192.
pub fn measure(compute: &Compute) -> f64 {
    const MIN_TRIALS: usize = 2 * 5;
    /// Where products are fast, as many as outlast other work that gets in between.
    const MIN_SECONDS: f64 = 0.15;
    let size = if compute.device == Device::Cpu { 1024 } else { 8192 };
    let matrix = Tensor::ones([size, size], (Kind::Float, compute.device)).to_kind(compute.kind);
    let seconds = |trial: usize| {
        let start = Instant::now();
        // Where libtorch has no vector code for bf16, its own product would take seconds.
        let ours = trial.is_multiple_of(2) || compute.products == Products::Widened;
        let product = if ours { compute.product(&matrix, &matrix) } else { matrix.mm(&matrix) };
        if let Device::Cuda(index) = compute.device {
            Cuda::synchronize(index as i64);
        }
        drop(product);
        start.elapsed().as_secs_f64()
    };
    let _ = [0, 1].map(seconds);
    let (mut best, mut spent, mut trials) = (f64::INFINITY, 0.0, 0);
    while trials < MIN_TRIALS || spent < MIN_SECONDS {
        let seconds = seconds(trials);
        best = best.min(seconds);
        spent += seconds;
        trials += 1;
    }
    2.0 * (size as f64).powi(3) / best
}
