//! Frequencies against those of transformers 5 (`ROPE_INIT_FUNCTIONS`, fp32).

use super::*;

/// transformers computes in fp32.
const SAME_IN_FP32: f64 = 1e-7;

#[test]
fn frequencies_are_those_of_transformers() {
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 1024,
        beta_fast: BETAS.0,
        beta_slow: BETAS.1,
    };
    let (found, factor) = frequencies(16, 1e4, Some(&yarn));
    let expected = [
        1.0,
        0.316_227_763_891_220_1,
        0.081_250_004_470_348_36,
        0.019_764_237_105_846_405,
        0.004_375_000_018_626_451_5,
        0.000_790_569_465_607_404_7,
        0.000_250_000_011_874_362_8,
        0.000_079_056_946_560_740_47,
    ];
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < SAME_IN_FP32, "{found}, not {expected}");
    }
    assert!((factor - 1.138_629_436_111_989).abs() < 1e-15);

    let (found, factor) = frequencies(16, 1e4, Some(&RopeScaling::Linear { factor: 4.0 }));
    assert!((found[1] - 0.079_056_940_972_802_5).abs() < SAME_IN_FP32);
    assert_eq!((found[0], factor), (0.25, 1.0));
}
