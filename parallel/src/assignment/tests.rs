//! Blocks tile the step, and what does not divide says what would.

use super::*;

#[test]
fn blocks_tile_the_step_and_owner_inverts_them() {
    for (num_micro_batches, degree) in [(1, 1), (4, 1), (4, 2), (12, 3), (6, 6)] {
        let assignment = Assignment::new(num_micro_batches, degree).unwrap();
        let mut next = 0;
        for rank in 0..degree {
            let block = assignment.of_rank(rank);
            assert_eq!(block.start, next);
            assert_eq!(block.len(), assignment.micro_batches_per_rank());
            assert!(block.clone().all(|micro_batch| assignment.owner(micro_batch) == rank));
            next = block.end;
        }
        assert_eq!(next, assignment.num_micro_batches());
    }
}

#[test]
fn remainder_names_the_equation_and_the_remedy() {
    let message = Assignment::new(4, 3).unwrap_err().to_string();
    assert_eq!(
        message,
        "4 micro-batches do not divide over 3 ranks: micro_batches % ranks = 1; \
         use 3 or 6 micro-batches, or 1, 2 or 4 ranks"
    );
}

#[test]
fn more_ranks_than_micro_batches() {
    let message = Assignment::new(2, 4).unwrap_err().to_string();
    assert_eq!(
        message,
        "2 micro-batches do not divide over 4 ranks: micro_batches % ranks = 2; \
         use 4 micro-batches, or 1 or 2 ranks"
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
