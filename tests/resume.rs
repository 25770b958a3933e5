//! A run that was interrupted and resumed is the run that was not.

use crate::program::Program;

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let program = Program::new();
    program.train(1, &["run.dir='whole'", "run.steps=40", "checkpoint.keep_last=9"]);

    // The schedule's horizon is part of a run's meaning, so the interrupted run has it too and
    // is stopped from outside: by a limit on the steps it may take, which is a signal in real life.
    let part = ["run.dir='part'", "run.steps=40", "checkpoint.keep_last=9"];
    program.train(1, &part);
    for step in [30, 40] {
        let folder = program.path(&format!("part/checkpoints/step-{step:08}"));
        std::fs::remove_dir_all(folder).expect("a checkpoint");
    }
    let resumed = [&part[..], &["checkpoint.resume=true"]].concat();
    program.train(1, &resumed);

    assert_eq!(program.hash("part", 40), program.hash("whole", 40));
    assert_eq!(program.losses("part"), program.losses("whole"));

    // The third arm: without the state of step 20, the run is another one.
    program.train(1, &["run.dir='cold'", "run.steps=20", "seed=4"]);
    assert_ne!(program.hash("cold", 20), program.hash("whole", 20));
}

#[test]
fn resume_without_a_checkpoint_starts_anew() {
    let program = Program::new();
    program.train(1, &["run.dir='new'", "run.steps=3", "checkpoint.resume=true"]);
    assert_eq!(program.losses("new").len(), 3);
}

#[test]
fn a_finished_run_can_be_resumed_and_does_nothing() {
    let program = Program::new();
    program.train(1, &["run.steps=3"]);
    let before = program.hash("run", 3);
    program.train(1, &["run.steps=3", "checkpoint.resume=true"]);
    assert_eq!(program.hash("run", 3), before);
    assert_eq!(program.losses("run").len(), 3);
}
