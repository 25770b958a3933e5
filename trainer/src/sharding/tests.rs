//! Which rank owns and sums which elements.

use grove_parallel::UnitLayout;
use grove_parallel::layout::ParamShape;

use super::{Placement, Stage, Sums};

fn placement(rank: usize, degree: usize, shard_degree: usize) -> Placement {
    let (stage, sums) = (Stage::Parameters, Sums::Exact);
    Placement { stage, sums, degree, rank, shard_degree, keep_numel: 1000 }
}

fn layout(numel: i64, degree: usize) -> UnitLayout {
    let params = [ParamShape { name: "weight".into(), shape: vec![numel] }];
    UnitLayout::new("unit", &params, degree).expect("a layout")
}

#[test]
fn every_element_is_summed_by_one_rank_and_owned_by_one_of_each_shard_group() {
    for (degree, shard_degree) in [(1, 1), (4, 1), (4, 2), (4, 4), (6, 3), (6, 2)] {
        let layout = layout(3000, degree);
        let mut summed = vec![0; layout.padded_numel()];
        let mut owned = vec![0; layout.padded_numel()];
        for rank in 0..degree {
            let place = placement(rank, degree, shard_degree);
            let (own, sum) = (place.owned(&layout), place.summed(&layout));
            assert!(own.start <= sum.start && sum.end <= own.end, "{own:?} holds {sum:?}");
            owned[own].iter_mut().for_each(|count| *count += 1);
            summed[sum].iter_mut().for_each(|count| *count += 1);
        }
        assert!(summed.iter().all(|&count| count == 1), "{degree} ranks, {shard_degree}");
        assert!(owned.iter().all(|&count| count == degree / shard_degree));
    }
}

#[test]
fn neighbors_make_a_shard_group() {
    let place = placement(5, 8, 4);
    assert_eq!((place.replica(), place.coord(), place.num_replicas()), (1, 1, 2));
}

#[test]
fn small_units_stay_whole_and_so_does_all_below_stage_3() {
    let place = placement(0, 2, 2);
    assert!(place.shards_working(&layout(1001, 2)));
    assert!(!place.shards_working(&layout(1000, 2)));
    assert!(!Placement { stage: Stage::Gradients, ..place }.shards_working(&layout(5000, 2)));
    assert!(!Placement::alone().shards_working(&layout(5000, 1)));
}

#[test]
fn accumulators_are_whole_where_each_rank_adds_its_own() {
    let place = Placement { stage: Stage::Optimizer, ..placement(0, 2, 2) };
    assert!(!place.accumulates_whole());
    let fast = Placement { sums: Sums::Fast, ..place };
    assert!(fast.accumulates_whole());
    assert!(!Placement { stage: Stage::Gradients, ..fast }.accumulates_whole());
    assert!(Placement::alone().accumulates_whole());
}
