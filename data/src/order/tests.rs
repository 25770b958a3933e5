//! The permutation is a bijection and uniform; windows stay in range and differ by epoch.

use std::collections::BTreeSet;

use super::*;

fn images(len: u64, key: u64) -> Vec<u64> {
    let permutation = Permutation::new(len, key);
    (0..len).map(|index| permutation.at(index)).collect()
}

/// `sum (observed - expected)^2 / expected` over cells that are equally likely.
fn chi_squared(counts: &[u64]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum()
}

/// Checks a statistic against its distribution: `k` degrees of freedom have mean `k` and variance
/// `2 k`. Six standard deviations, since the keys are fixed and the test must not be luck.
fn check_chi_squared(counts: &[u64]) {
    const MAX_DEVIATIONS: f64 = 6.0;
    let freedom = (counts.len() - 1) as f64;
    let deviations = (chi_squared(counts) - freedom) / (2.0 * freedom).sqrt();
    assert!(deviations < MAX_DEVIATIONS, "{deviations} deviations: {counts:?}");
}

#[test]
fn the_permutation_is_a_bijection() {
    for len in [1, 2, 3, 4, 5, 16, 17, 255, 1000, 4096, 4097] {
        for key in 0..20 {
            let mut sorted = images(len, key);
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..len), "len {len}, key {key}");
        }
    }
}

#[test]
fn large_domains_stay_in_range() {
    for len in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 32) + 1, 100_000_000_000] {
        let permutation = Permutation::new(len, 3);
        let points = (0..1000).map(|i| len / 1000 * i);
        let images: BTreeSet<u64> = points.map(|point| permutation.at(point)).collect();
        assert_eq!(images.len(), 1000, "two points of 0..{len} have the same image");
        assert!(images.iter().all(|&image| image < len));
    }
}

#[test]
fn the_image_of_a_point_is_uniform_over_keys() {
    for (len, index) in [(5, 0), (17, 3), (17, 16), (64, 40)] {
        let mut counts = vec![0; len as usize];
        for key in 0..len * 2000 {
            counts[Permutation::new(len, key).at(index) as usize] += 1;
        }
        check_chi_squared(&counts);
    }
}

#[test]
fn neighbors_and_positions_are_uniform_for_one_key() {
    const NUM_CELLS: u64 = 50;
    let images = images(100_003, 11);
    let cell = |image: u64| image * NUM_CELLS / 100_003;
    let mut by_position = vec![0; (NUM_CELLS * NUM_CELLS) as usize];
    let mut by_neighbor = by_position.clone();
    for (index, pair) in images.windows(2).enumerate() {
        by_position[(cell(index as u64) * NUM_CELLS + cell(pair[0])) as usize] += 1;
        by_neighbor[(cell(pair[0]) * NUM_CELLS + cell(pair[1])) as usize] += 1;
    }
    check_chi_squared(&by_position);
    check_chi_squared(&by_neighbor);
}

#[test]
fn each_order_of_three_appears() {
    let mut counts = [0; 6];
    for key in 0..12_000 {
        let images = images(3, key);
        counts[(images[0] * 2 + u64::from(images[1] > images[2])) as usize] += 1;
    }
    // A Feistel network of four points does not reach all of their orders equally often; what
    // matters for training is that none is missing or rare. 2000 would be equal.
    assert!(counts.iter().all(|count| (1200..3000).contains(count)), "{counts:?}");
}

#[test]
fn windows_stay_in_range_and_cover_the_epoch() {
    for (num_tokens, sequence_length) in
        [(2, 1), (3, 1), (5, 4), (7, 4), (8, 4), (9, 4), (1000, 64), (1001, 1000), (4097, 16)]
    {
        let order = Order::new(num_tokens, sequence_length, 5).unwrap();
        let num_windows = order.num_windows();
        for epoch in 0..40 {
            let mut starts: Vec<u64> =
                (0..num_windows).map(|i| order.start(epoch * num_windows + i)).collect();
            starts.sort_unstable();
            assert_eq!(order.epoch(epoch * num_windows + num_windows - 1), epoch);
            let spaced = starts.windows(2).all(|pair| pair[1] - pair[0] == sequence_length);
            assert!(spaced, "windows overlap by one token: {starts:?}");
            assert!(starts[0] < sequence_length, "the phase is below the sequence length");
            let end = starts[starts.len() - 1] + sequence_length + 1;
            assert!(end <= num_tokens, "the last window ends at {end} of {num_tokens}");
            assert!(num_tokens - (end - starts[0]) < 2 * sequence_length, "too many sit out");
        }
    }
}

#[test]
fn the_worked_number_of_the_docs_holds() {
    let order = Order::new(1000, 64, 0).unwrap();
    assert_eq!((order.num_windows, order.num_phases), (14, 64));
    // The numbers of the room's README.
    let order = Order::new(1000, 64, 1234).unwrap();
    assert_eq!([0, 1, 13, 14].map(|sample| order.start(sample)), [779, 459, 331, 587]);
}

#[test]
fn every_phase_occurs_and_is_uniform() {
    let order = Order::new(1000, 10, 9).unwrap();
    let mut counts = vec![0; 10];
    for epoch in 0..20_000 {
        counts[(order.start(epoch * order.num_windows()) % 10) as usize] += 1;
    }
    check_chi_squared(&counts);
}

#[test]
fn epochs_and_seeds_differ() {
    let starts = |seed, epoch| -> Vec<u64> {
        let order = Order::new(10_000, 10, seed).unwrap();
        (0..order.num_windows()).map(|i| order.start(epoch * order.num_windows() + i)).collect()
    };
    assert_eq!(starts(1, 0), starts(1, 0));
    assert_ne!(starts(1, 0), starts(1, 1));
    assert_ne!(starts(1, 0), starts(2, 0));
    let windows =
        |starts: Vec<u64>| -> Vec<u64> { starts.iter().map(|start| start / 10).collect() };
    assert_ne!(windows(starts(1, 0)), windows(starts(1, 1)), "not only the phase differs");
}

#[test]
fn too_short_a_range_is_refused_with_the_equation() {
    let message = Order::new(64, 64, 0).unwrap_err().to_string();
    assert!(message.contains("sequence_length + 1 = 64 + 1 > 64"), "{message}");
    assert_eq!(Order::new(65, 64, 0).unwrap().num_windows(), 1);
    let zero = Order::new(64, 0, 0).unwrap_err().to_string();
    assert_eq!(zero, "sequence_length is 0, expected at least 1");
}
