//! The same file on several ranks gives the same run.

use grove::step_numbers::agree_on;
use grove_parallel::collective::ThreadGroup;

use crate::program::Program;

/// f32 sums over 1, 2 and 4 ranks differ in order: about 1e-7 a step, growing with the steps.
const SAME_LOSS: f64 = 1e-6;

#[test]
fn losses_do_not_depend_on_the_rank_count() {
    let program = Program::new();
    program.train(1, &["run.dir='one'"]);
    let expected = program.losses("one");
    assert_eq!(expected.len(), 20);
    for ranks in [2, 4] {
        let dir = format!("of{ranks}");
        program.train(ranks, &[&format!("run.dir='{dir}'")]);
        let found = program.losses(&dir);
        assert_eq!(found.len(), expected.len());
        let mut worst = 0.0f64;
        for ((step, loss), (_, expected)) in found.iter().zip(&expected) {
            let error = (loss - expected).abs() / expected;
            assert!(error < SAME_LOSS, "step {step} on {ranks} ranks: {loss}, not {expected}");
            worst = worst.max(error);
        }
        eprintln!("{ranks} ranks: losses differ by {worst:.1e} at most");
    }
}

#[test]
fn a_run_goes_on_at_another_rank_count() {
    let program = Program::new();
    program.train(1, &["run.dir='one'"]);
    program.train(2, &["run.dir='two'"]);
    let last = program.path("two/checkpoints/step-00000020");
    std::fs::remove_dir_all(last).expect("a checkpoint");
    program.train(1, &["run.dir='two'", "checkpoint.resume=true"]);
    let (expected, found) = (program.losses("one"), program.losses("two"));
    assert_eq!(found.len(), 20);
    let error = (found[19].1 - expected[19].1).abs() / expected[19].1;
    assert!(error < SAME_LOSS, "after the change: {found:?}, not {expected:?}");
}

#[test]
fn ranks_that_start_from_different_things_are_refused_on_every_rank() {
    let outcomes = |steps: [i64; 3]| -> Vec<Result<(), grove::Error>> {
        let ranks = ThreadGroup::new(steps.len()).into_iter().zip(steps);
        let threads: Vec<_> = ranks
            .map(|(rank, step)| {
                std::thread::spawn(move || agree_on(&rank, [("the plan", 7), ("the step", step)]))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    };
    assert!(outcomes([4, 4, 4]).iter().all(Result::is_ok));
    for outcome in outcomes([4, 4, -3]) {
        let said = outcome.expect_err("the steps differ").to_string();
        assert!(said.contains("rank 2 differs from rank 0 in the step"), "{said}");
    }
}
