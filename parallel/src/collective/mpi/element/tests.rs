//! The order of every sum, by values whose sum depends on it.

use super::*;

/// Contributions whose rank-order sum, tree sum and reversed sum all differ in f32.
fn contribution_of(source: usize, element: usize) -> f32 {
    let sign = if (source + element) % 3 == 1 { -1.0 } else { 1.0 };
    sign * 10f32.powi(((source * 5 + element) % 8) as i32) * (1.0 + element as f32 * 1e-3)
}

fn reduced(reduction: Reduction, degree: usize, rank: usize, numel: usize) -> Vec<f32> {
    let of = |source| (0..numel).map(|i| contribution_of(source, i)).collect::<Vec<_>>();
    let peers: Vec<Vec<f32>> = (0..degree).filter(|&source| source != rank).map(of).collect();
    let views: Vec<&[f32]> = peers.iter().map(Vec::as_slice).collect();
    let mut own = of(rank);
    reduce(reduction, &mut own, rank, &views);
    own
}

/// Level by level, as the documentation of `TreeSum` says it.
fn tree_by_levels(mut level: Vec<f32>) -> f32 {
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| pair.iter().copied().reduce(|a, b| a + b).unwrap())
            .collect();
    }
    level[0]
}

#[test]
fn sums_are_in_rank_order_whoever_adds() {
    let numel = BLOCK_ELEMENTS + 7;
    for degree in 1..=9 {
        for rank in 0..degree {
            let sum = reduced(Reduction::Sum, degree, rank, numel);
            let tree = reduced(Reduction::TreeSum, degree, rank, numel);
            for element in 0..numel {
                let all: Vec<f32> = (0..degree).map(|s| contribution_of(s, element)).collect();
                let chain = all.iter().copied().reduce(|a, b| a + b).unwrap();
                assert_eq!(sum[element].to_bits(), chain.to_bits());
                assert_eq!(tree[element].to_bits(), tree_by_levels(all).to_bits());
            }
        }
    }
}

#[test]
fn the_test_values_tell_the_orders_apart() {
    let differ = |degree| {
        reduced(Reduction::Sum, degree, 0, 64) != reduced(Reduction::TreeSum, degree, 0, 64)
    };
    assert!(!differ(2) && !differ(3), "up to three ranks the tree is the chain");
    assert!((4..=9).all(differ));
}

#[test]
fn nan_wins_and_integers_wrap() {
    for (own, peer) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
        for reduction in [Reduction::Max, Reduction::Min] {
            let mut value = [own];
            reduce(reduction, &mut value, 0, &[&[peer]]);
            assert!(value[0].is_nan());
        }
    }
    let mut value = [i32::MAX];
    reduce(Reduction::Sum, &mut value, 0, &[&[1]]);
    assert_eq!(value, [i32::MIN]);
    let mut value = [3i64, -3];
    reduce(Reduction::Min, &mut value, 1, &[&[2, 2]]);
    assert_eq!(value, [2, -3]);
}

#[test]
fn terms_are_widened_and_added_in_order() {
    let numel = 2 * BLOCK_ELEMENTS + 7;
    for (degree, onto) in (1..=5).flat_map(|d| [Onto::Nothing, Onto::Output].map(|o| (d, o))) {
        let upper = |value: f32| (value.to_bits() >> 16) as u16;
        let of = |source| (0..numel).map(|i| Bf16(upper(contribution_of(source, i)))).collect();
        let terms: Vec<Vec<Bf16>> = (0..degree).map(of).collect();
        let views: Vec<&[Bf16]> = terms.iter().map(Vec::as_slice).collect();
        let base: Vec<f32> = (0..numel).map(|i| contribution_of(11, i)).collect();
        let mut output = base.clone();
        add_in_order(&mut output, onto, &views);
        for element in 0..numel {
            let start = (onto == Onto::Output).then_some(base[element]);
            let widened = terms.iter().map(|term| f32::from_bits(u32::from(term[element].0) << 16));
            let sum = start.into_iter().chain(widened).reduce(|a, b| a + b).unwrap();
            assert_eq!(output[element].to_bits(), sum.to_bits());
        }
    }
}
