//! Scales, and products on the CPU against exact ones.

use super::*;

/// Half a unit in the last of the 4 significant bits of `e4m3`, of either factor.
const ROUNDING: f64 = 2.0 / 16.0;

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16)
}

#[test]
fn a_scale_brings_the_largest_magnitude_to_the_end_of_the_range() {
    let matrix = Tensor::from_slice2(&[[1.0, -896.0, 3.0], [0.0, 0.0, 0.0]]);
    assert_eq!(scale_of(&matrix, None, E4M3).double_value(&[]), 2.0);
    assert_eq!(scale_of(&matrix, None, E5M2).double_value(&[]), 1.0 / 64.0);
    let rows = scale_of(&matrix, Some(1), E4M3);
    assert_eq!(rows, Tensor::from_slice(&[2.0f32, 1.0]).view([2, 1]));
    let columns = scale_of(&matrix, Some(0), E4M3);
    assert_eq!(columns.size(), [1, 3]);
    assert_eq!(columns.double_value(&[0, 1]), 2.0);
    let found = scaled(&matrix, Some(1), E4M3);
    assert_eq!(found.values.kind(), Kind::Float8e4m3fn);
    assert_eq!(found.values.to_kind(Kind::Float).double_value(&[0, 1]), -448.0);
}

#[test]
fn the_largest_magnitude_never_overflows() {
    tch::manual_seed(3);
    let matrix = random(&[512, 64]) * 1e-3;
    for format in [E4M3, E5M2] {
        for dim in [None, Some(0), Some(1)] {
            let found = scaled(&matrix, dim, format);
            assert_eq!(found.values.kind(), format.kind);
            let values = found.values.to_kind(Kind::Float);
            assert_eq!(values.isfinite().all(), Tensor::from(true));
            assert_eq!(values.abs().max().double_value(&[]), format.largest);
        }
    }
}

/// With one scale for gradients six decades apart, `e4m3` has nothing left of the small ones.
#[test]
fn gradients_that_share_a_scale_keep_their_small_ones() {
    tch::manual_seed(5);
    let gradients = random(&[64, 32]);
    let _ = gradients.get(0).g_mul_scalar_(1e6);
    let unit = Tensor::eye(32, (Kind::BFloat16, Device::Cpu));
    let error = |fp8, content| {
        let found = product(fp8, (&gradients, content), (&unit, Content::Values));
        let small = (found - &gradients).narrow(0, 1, 63).to_kind(Kind::Float);
        small.abs().mean(Kind::Double).double_value(&[])
    };
    let [wide, narrow] = [Content::Gradients, Content::Values].map(|it| error(Fp8::Tensor, it));
    assert!(narrow > 4.0 * wide, "{wide} in e5m2, {narrow} in e4m3");
    let row = error(Fp8::Row, Content::Gradients);
    assert_eq!(row, error(Fp8::Row, Content::Values), "a scale a row is always for e4m3");
}

#[test]
fn products_are_off_by_the_rounding_of_their_factors() {
    tch::manual_seed(4);
    let (a, b) = (random(&[48, 64]), random(&[64, 32]));
    // A row and a column far above the others, which a scale for all of them would drown.
    let _ = a.get(5).g_mul_scalar_(1e6);
    let _ = b.select(1, 7).g_mul_scalar_(1e6);
    let wide = |matrix: &Tensor| matrix.to_kind(Kind::Double);
    let exact = wide(&a).mm(&wide(&b));
    let bound = wide(&a).abs().mm(&wide(&b).abs()) * ROUNDING;
    assert!(takes(&a, &b));
    let values = Content::Values;
    let error = |fp8| (wide(&product(fp8, (&a, values), (&b, values))) - &exact).abs();
    let excess = (error(Fp8::Row) - &bound).max().double_value(&[]);
    assert!(excess <= 0.0, "{excess} too far");
    // A single scale leaves a typical row nothing above the smallest numbers.
    let [row, whole] = [Fp8::Row, Fp8::Tensor].map(|fp8| {
        error(fp8).narrow(0, 6, 42).narrow(1, 8, 24).mean(Kind::Double).double_value(&[])
    });
    assert!(whole > 4.0 * row, "{whole} with one scale, {row} with one a row");
}

#[test]
fn shapes_that_the_library_refuses_are_left_to_bf16() {
    assert!(!takes(&random(&[8, 24]), &random(&[24, 32])));
    assert!(!takes(&random(&[8, 32]), &random(&[32, 24])));
    assert!(takes(&random(&[7, 32]), &random(&[32, 16])));
    assert!(!takes(&random(&[8, 32]).to_kind(Kind::Float), &random(&[32, 32])));
}
