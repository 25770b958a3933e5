//! Attention that stops at the starts of segments.

use super::reference::normal;
use super::{Case, Element, Segments, bits, check_segments, levels, shape};
use half::bf16;

/// Two sequences of 200: segments within a block, over several, of one position, at block borders,
/// and a sequence that is one segment.
const STARTS: [u32; 8] = [0, 3, 64, 65, 66, 190, 199, 200];

#[test]
fn segments_match_the_formula() {
    check_segments(shape([2, 200, 4, 2, 32]), Some(Segments::new(2, 200, &STARTS)));
    check_segments(shape([1, 130, 2, 1, 16]), Some(Segments::new(1, 130, &[0, 128])));
    let every_position: Vec<u32> = (0..70).collect();
    check_segments(shape([1, 70, 1, 1, 16]), Some(Segments::new(1, 70, &every_position)));
}

#[test]
fn a_window_within_segments_matches_the_formula() {
    let windowed = super::AttentionShape { window: Some(20), ..shape([2, 200, 2, 2, 16]) };
    check_segments(windowed, Some(Segments::new(2, 200, &STARTS)));
}

/// Bits with one segment a sequence and without segments.
fn check_one_segment<E: Element>() {
    let shape = shape([2, 150, 2, 1, 16]);
    let qkv: Vec<E> = normal(shape.qkv_len(), 31, 1.0);
    let d_out: Vec<E> = normal(shape.out_len(), 32, 1.0);
    for level in levels() {
        let run = |segments| Case { level, num_threads: 2, shape, segments }.run(&qkv, &d_out);
        let whole = Some(Segments::new(2, 150, &[0, 150]));
        assert!(bits(&run(None)) == bits(&run(whole)), "{level:?}");
    }
}

#[test]
fn one_segment_is_none() {
    check_one_segment::<f32>();
    check_one_segment::<bf16>();
}

/// What stands in one segment must not show in another: not a bit.
fn check_isolation<E: Element>() {
    let shape = shape([1, 200, 2, 1, 16]);
    let width = 4 * 16;
    let qkv: Vec<E> = normal(shape.qkv_len(), 33, 1.0);
    let mut changed = qkv.clone();
    let other = 70 * width..130 * width;
    changed[other.clone()].copy_from_slice(&normal::<E>(other.len(), 34, 5.0));
    let d_out: Vec<E> = normal(shape.out_len(), 35, 1.0);
    for level in levels() {
        let run = |qkv: &[E], num_threads| {
            let segments = Some(Segments::new(1, 200, &[0, 70, 130]));
            bits(&Case { level, num_threads, shape, segments }.run(qkv, &d_out))
        };
        let (before, after) = (run(&qkv, 1), run(&changed, 3));
        for (name, before, after, row) in
            [("out", &before.0, &after.0, 2 * 16), ("d_qkv", &before.2, &after.2, width)]
        {
            for kept in [0..70 * row, 130 * row..200 * row] {
                assert!(before[kept.clone()] == after[kept], "{name} at {level:?}");
            }
            assert!(before != after, "{name} at {level:?} of the changed segment itself");
        }
    }
}

#[test]
fn other_segments_change_no_bit() {
    check_isolation::<f32>();
    check_isolation::<bf16>();
}

#[test]
fn segments_of_another_shape_are_refused() {
    let shape = shape([1, 100, 1, 1, 16]);
    let qkv: Vec<f32> = normal(shape.qkv_len(), 36, 1.0);
    let d_out: Vec<f32> = normal(shape.out_len(), 37, 1.0);
    let segments = Some(Segments::new(1, 90, &[0]));
    let case = Case { level: super::Level::Portable, num_threads: 1, shape, segments };
    let call = std::panic::AssertUnwindSafe(|| drop(case.run(&qkv, &d_out)));
    assert!(std::panic::catch_unwind(call).is_err());
}
