//! Means, root mean squares and the rank-1 estimate.

use super::{clip_rms_, mean_square, outer_estimate, rms};
use crate::whole::tests::{gap, noise};
use tch::{Kind, Tensor};

/// A few roundings of sums of squares in f64.
const TOLERANCE: f64 = 1e-14;

#[test]
fn means_are_of_squares() {
    let matrix = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).view([2, 3]);
    let rows = Tensor::from_slice(&[14.0 / 3.0, 77.0 / 3.0]);
    let cols = Tensor::from_slice(&[8.5, 14.5, 22.5]);
    assert!(gap(&mean_square(&matrix, 1).unwrap(), &rows) < TOLERANCE);
    assert!(gap(&mean_square(&matrix, 0).unwrap(), &cols) < TOLERANCE);
    assert!((rms(&matrix).unwrap().double_value(&[]) - (91.0_f64 / 6.0).sqrt()).abs() < TOLERANCE);
}

#[test]
fn the_estimate_is_exact_for_rank_one_and_keeps_means() {
    let (a, b) = (noise(&[5], 1).abs(), noise(&[7], 2).abs());
    let means = |m: &Tensor, dim: i64| m.mean_dim([dim].as_slice(), false, Kind::Double);
    let product = a.outer(&b);
    let estimate = outer_estimate(&means(&product, 1), &means(&product, 0), 0.0).unwrap();
    assert!(gap(&estimate, &product) < TOLERANCE);
    let any = noise(&[5, 7], 3).square();
    let estimate = outer_estimate(&means(&any, 1), &means(&any, 0), 0.0).unwrap();
    assert!(gap(&means(&estimate, 1), &means(&any, 1)) < TOLERANCE);
    assert!(gap(&means(&estimate, 0), &means(&any, 0)) < TOLERANCE);
}

#[test]
fn clipping_only_shrinks() {
    let values = Tensor::from_slice(&[3.0, -3.0]);
    let mut clipped = values.copy();
    clip_rms_(&mut clipped, 1.5).unwrap();
    assert!(gap(&clipped, &Tensor::from_slice(&[1.5, -1.5])) < TOLERANCE);
    let mut kept = values.copy();
    clip_rms_(&mut kept, 4.0).unwrap();
    assert_eq!(kept, values);
}
