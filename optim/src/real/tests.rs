//! Rounding to bf16 against libtorch's cast.

use super::Real;
use half::bf16;
use tch::{Kind, Tensor};

/// `f32` values around every bf16: exact, just off, ties to even and odd, and non-finite.
fn values() -> Vec<f32> {
    let tails = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
    (0..=u16::MAX)
        .flat_map(|high| tails.map(|low| f32::from_bits((u32::from(high) << 16) | low)))
        .collect()
}

fn same(ours: bf16, torch: f32) -> bool {
    ours.to_f32().to_bits() == torch.to_bits() || (ours.is_nan() && torch.is_nan())
}

#[test]
fn f32_rounds_as_libtorch_and_half_do() {
    let values = values();
    let torch = Tensor::from_slice(&values).to_kind(Kind::BFloat16).to_kind(Kind::Float);
    let torch = Vec::<f32>::try_from(torch).unwrap();
    for (&value, torch) in values.iter().zip(torch) {
        assert!(same(value.to_bf16(), torch), "{value:e}");
        assert!(same(value.to_bf16(), bf16::from_f32(value).to_f32()), "{value:e}");
    }
}

#[test]
fn f64_rounds_as_libtorch_does() {
    let values: Vec<f64> = values().iter().map(|&v| f64::from(v) * (1.0 + 1e-12)).collect();
    let torch = Tensor::from_slice(&values).to_kind(Kind::BFloat16).to_kind(Kind::Float);
    let torch = Vec::<f32>::try_from(torch).unwrap();
    for (&value, torch) in values.iter().zip(torch) {
        assert!(same(value.to_bf16(), torch), "{value:e}");
    }
}
