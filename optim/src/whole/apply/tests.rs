//! Both orders, cuts, copies, and the tensor twin.

use super::DecayOrder;
use crate::elements::{Scalars, Working};
use crate::group::Group;
use crate::whole::{MuonConfig, WholeRuleConfig};
use half::bf16;
use tch::{Device, Kind, Tensor};

const ORDERS: [DecayOrder; 2] = [DecayOrder::Before, DecayOrder::After];

/// `lr` 0.5 and weight decay 0.2: a decay of 0.9.
fn scalars() -> Scalars {
    let config = MuonConfig { weight_decay: 0.2, ..MuonConfig::default() };
    let group = Group { lr_multiplier: 1.0, weight_decay_multiplier: 1.0 };
    WholeRuleConfig::Muon(config).build().unwrap().scalars(&group, 0.5, 1.0, 1)
}

fn wave(n: usize, phase: f64) -> Vec<f32> {
    (0..n).map(|i| (i as f64 * 0.37 + phase).sin() as f32).collect()
}

#[test]
fn the_decay_is_before_or_after() {
    for (order, expected) in [(DecayOrder::Before, 1.6), (DecayOrder::After, 1.62)] {
        let mut master = [2.0_f64];
        order.apply(&mut master, &[0.2], Working::None, &scalars()).unwrap();
        assert!((master[0] - expected).abs() < 1e-15, "{order:?}: {}", master[0]);
    }
}

#[test]
fn cuts_and_copies_change_no_bit() {
    const N: usize = 1003;
    for order in ORDERS {
        let (mut whole, mut cut) = (wave(N, 0.0), wave(N, 0.0));
        let update = wave(N, 1.0);
        let mut copy = vec![bf16::ZERO; N];
        order.apply(&mut whole, &update, Working::Bf16(&mut copy), &scalars()).unwrap();
        for (master, update) in cut.chunks_mut(37).zip(update.chunks(37)) {
            order.apply(master, update, Working::None, &scalars()).unwrap();
        }
        assert_eq!(whole, cut, "{order:?}");
        assert!(copy.iter().zip(&whole).all(|(copy, &x)| *copy == bf16::from_f32(x)));
        let mut tensor = Tensor::from_slice(&wave(N, 0.0));
        let update = Tensor::from_slice(&update).view([17, 59]);
        let mut rounded = Tensor::zeros([17, 59], (Kind::BFloat16, Device::Cpu));
        order.apply_tensor(&mut tensor, &update, Some(&mut rounded), &scalars()).unwrap();
        assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), whole, "{order:?}");
        assert_eq!(rounded.view(-1), tensor.to_kind(Kind::BFloat16));
    }
}

#[test]
fn lengths_are_named() {
    for order in ORDERS {
        let mut master = [1.0_f32; 4];
        let error = order.apply(&mut master, &[0.0; 3], Working::None, &scalars()).unwrap_err();
        assert!(
            error.to_string().starts_with("buffer update has 3 elements where the range has 4")
        );
        let copy = &mut [bf16::ZERO; 5];
        let error = order.apply(&mut master, &[0.0; 4], Working::Bf16(copy), &scalars());
        assert!(error.unwrap_err().to_string().starts_with("buffer working has 5"));
        let mut tensor = Tensor::from_slice(&master);
        let update = Tensor::from_slice(&[0.0_f32; 3]);
        let error = order.apply_tensor(&mut tensor, &update, None, &scalars()).unwrap_err();
        assert!(error.to_string().starts_with("buffer update has 3"));
    }
}
