//! Every micro-batch is computed once, rounds go through them in order, and what cannot work says
//! what would.

use super::*;

#[test]
fn rounds_go_through_all_micro_batches_in_order() {
    for (num_micro_batches, degree) in [(1, 1), (4, 1), (4, 2), (12, 3), (6, 6), (7, 3), (5, 4)] {
        let assignment = Assignment::new(num_micro_batches, degree).unwrap();
        assert_eq!(
            (assignment.num_micro_batches(), assignment.degree()),
            (num_micro_batches, degree)
        );
        let mut in_order = Vec::new();
        let mut by_rank = vec![Vec::new(); degree];
        for round in 0..assignment.num_rounds() {
            for (rank, of_rank) in by_rank.iter_mut().enumerate() {
                let micro_batch = assignment.micro_batch(round, rank);
                in_order.extend(micro_batch);
                of_rank.extend(micro_batch);
            }
            assert!(assignment.micro_batch(round, 0).is_some(), "no round without work");
        }
        assert!(in_order.into_iter().eq(0..num_micro_batches));
        for (rank, of_rank) in by_rank.into_iter().enumerate() {
            assert!(assignment.of_rank(rank).eq(of_rank));
        }
        assert_eq!(assignment.micro_batch(assignment.num_rounds(), 0), None);
        assert_eq!(assignment.micro_batch(usize::MAX, degree - 1), None);
    }
}

#[test]
fn seven_over_three_by_hand() {
    let assignment = Assignment::new(7, 3).unwrap();
    assert_eq!(assignment.num_rounds(), 3);
    let of_ranks: Vec<Vec<usize>> = (0..3).map(|rank| assignment.of_rank(rank).collect()).collect();
    assert_eq!(of_ranks, [vec![0, 3, 6], vec![1, 4], vec![2, 5]]);
    assert_eq!(assignment.micro_batch(1, 2), Some(5));
    assert_eq!(assignment.micro_batch(2, 1), None);
}

#[test]
fn more_ranks_than_micro_batches() {
    let message = Assignment::new(2, 5).unwrap_err().to_string();
    assert_eq!(
        message,
        "5 ranks share 2 micro-batches, so that 3 of them would never have work; \
         use at least 5 micro-batches, or at most 2 ranks"
    );
}

#[test]
fn zero_is_refused() {
    assert_eq!(
        Assignment::new(0, 1).unwrap_err().to_string(),
        "the number of micro-batches is 0; it must be at least 1"
    );
    assert!(Assignment::new(1, 0).is_err());
}
