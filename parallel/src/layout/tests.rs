//! Shards tile a unit, segments cover each parameter exactly once, and bad units are refused.

use proptest::prelude::*;

use super::*;

fn param(name: &str, shape: &[i64]) -> ParamShape {
    ParamShape { name: name.to_owned(), shape: shape.to_vec() }
}

fn layout_of(shapes: &[Vec<i64>], degree: usize) -> UnitLayout {
    let params: Vec<ParamShape> =
        shapes.iter().enumerate().map(|(i, shape)| param(&format!("p{i}"), shape)).collect();
    UnitLayout::new("unit", &params, degree).unwrap()
}

#[test]
fn parameters_may_straddle_shards() {
    let layout = layout_of(&[vec![256], vec![300], vec![1]], 2);
    assert_eq!(layout.params()[2].offset, 768);
    assert_eq!(layout.padded_numel(), 1024);
    let second: Vec<Segment> = layout.segments(layout.shard(1)).collect();
    assert_eq!(
        second,
        [
            Segment { param: 1, param_range: 256..300, unit_range: 512..556 },
            Segment { param: 2, param_range: 0..1, unit_range: 768..769 },
        ]
    );
}

#[test]
fn a_range_inside_padding_has_no_segments() {
    let layout = layout_of(&[vec![10], vec![10]], 1);
    assert_eq!(layout.segments(10..256).count(), 0);
    assert_eq!(layout.segments(5..5).count(), 0);
}

#[test]
fn a_unit_without_parameters_is_all_padding() {
    let layout = layout_of(&[], 3);
    assert_eq!(layout.padded_numel(), 3 * ALIGNMENT_ELEMENTS);
    assert_eq!(layout.segments(0..layout.padded_numel()).count(), 0);
}

#[test]
fn bad_units_are_refused() {
    let error = |params: &[ParamShape]| UnitLayout::new("block.0", params, 1).unwrap_err();
    assert_eq!(
        error(&[param("w", &[2]), param("w", &[3])]).to_string(),
        "unit `block.0` has parameter `w` twice; names must differ within a unit"
    );
    for shape in [&[][..], &[0], &[3, 0], &[-1], &[i64::MAX, 2]] {
        assert!(matches!(error(&[param("w", shape)]), Error::Shape { .. }), "{shape:?}");
    }
    assert_eq!(
        layout_of(&[vec![1], vec![2]], 1).param("q").unwrap_err().to_string(),
        "unit `unit` has no parameter `q`; it has p0, p1"
    );
}

proptest! {
    #[test]
    fn shards_tile_and_segments_cover_each_parameter_once(
        shapes in prop::collection::vec(prop::collection::vec(1i64..40, 1..3), 1..8),
        degree in 1usize..7,
    ) {
        let layout = layout_of(&shapes, degree);
        prop_assert_eq!(layout.padded_numel() % (degree * ALIGNMENT_ELEMENTS), 0);
        let mut covered: Vec<Vec<u32>> =
            layout.params().iter().map(|param| vec![0; param.numel]).collect();
        let mut next = 0;
        for coord in 0..degree {
            let shard = layout.shard(coord);
            prop_assert_eq!(shard.start, next);
            next = shard.end;
            for segment in layout.segments(shard.clone()) {
                let offset = layout.params()[segment.param].offset;
                prop_assert_eq!(segment.param_range.start + offset, segment.unit_range.start);
                prop_assert_eq!(segment.param_range.end + offset, segment.unit_range.end);
                prop_assert!(shard.start <= segment.unit_range.start);
                prop_assert!(segment.unit_range.end <= shard.end);
                for element in segment.param_range {
                    covered[segment.param][element] += 1;
                }
            }
        }
        prop_assert_eq!(next, layout.padded_numel());
        prop_assert!(covered.iter().flatten().all(|&times| times == 1));
    }

    #[test]
    fn offsets_do_not_depend_on_the_degree(
        numels in prop::collection::vec(1i64..2000, 1..8),
        degree in 1usize..9,
    ) {
        let shapes: Vec<Vec<i64>> = numels.iter().map(|&numel| vec![numel]).collect();
        let (alone, shared) = (layout_of(&shapes, 1), layout_of(&shapes, degree));
        prop_assert_eq!(alone.params(), shared.params());
        prop_assert!(alone.params().iter().all(|p| p.offset % ALIGNMENT_ELEMENTS == 0));
    }
}
