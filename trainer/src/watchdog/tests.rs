//! Frames that come back as they were sent, and judgements over what ranks could say.

use super::beat::{Beat, FRAME_BYTES, Kind, Waiting};
use super::judge::{Cause, Finding, Link, Sight, judge};
use super::process;
use super::pulse::{Doing, Pulse};

const STALL_SECONDS: f64 = 10.0;

/// A rank that is well: heard of a moment ago, and getting on.
fn well(rank: usize) -> Sight {
    let doing = Doing { phase: "backward".to_owned(), step: 12, ..Doing::default() };
    Sight {
        rank,
        host: "node".to_owned(),
        pid: 100 + rank as u32,
        doing,
        idle_seconds: 0.1,
        silent_seconds: 0.1,
        waiting: None,
        disk_threads: 0,
        link: Link::Up,
        state: None,
    }
}

/// A rank that waits in a call since before the stall.
fn waits(rank: usize, call: &str) -> Sight {
    let waiting = Some(Waiting { sequence: 7, call: call.to_owned(), millis: 12_000 });
    Sight { waiting, idle_seconds: 12.0, ..well(rank) }
}

fn idle(rank: usize, phase: &str) -> Sight {
    let doing = Doing { phase: phase.to_owned(), ..well(rank).doing };
    Sight { doing, idle_seconds: 12.0, ..well(rank) }
}

fn check(sights: &[Sight], culprit: usize, cause: Cause) {
    let expected = Finding { culprit, cause };
    assert_eq!(judge(sights, STALL_SECONDS), Some(expected.clone()));
    let line = expected.describe(sights);
    assert!(line.contains(&format!("rank {culprit} on node (process 10{culprit})")), "{line}");
    assert_eq!(line.lines().count(), 1);
}

#[test]
fn ranks_that_get_on_or_wait_for_one_that_does_are_left_alone() {
    assert_eq!(judge(&[well(0), well(1)], STALL_SECONDS), None);
    assert_eq!(judge(&[waits(0, "a"), well(1), waits(2, "a")], STALL_SECONDS), None);
    let ended = Sight { link: Link::Ended, silent_seconds: 99.0, idle_seconds: 99.0, ..well(1) };
    assert_eq!(judge(&[well(0), ended], STALL_SECONDS), None);
}

#[test]
fn who_does_not_get_on_is_named_and_not_who_waits_for_it() {
    let silent = |state| Sight { silent_seconds: 11.0, idle_seconds: 11.0, state, ..well(2) };
    let slow_disk = Sight { disk_threads: 1, ..idle(2, "save") };
    for (sight, cause) in [
        (silent(Some('T')), Cause::Stopped),
        (silent(None), Cause::Silent),
        (Sight { link: Link::Unanswered, ..well(2) }, Cause::Vanished),
        (Sight { link: Link::Closed, ..well(2) }, Cause::Gone),
        (Sight { state: Some('X'), ..well(2) }, Cause::Gone),
        (Sight { link: Link::Raised("no".to_owned()), ..well(2) }, Cause::Raised("no".to_owned())),
        (idle(2, "data"), Cause::SlowData),
        (slow_disk, Cause::SlowDisk),
        (idle(2, "forward"), Cause::NoProgress),
    ] {
        check(&[waits(0, "all_reduce"), waits(1, "all_reduce"), sight], 2, cause);
    }
}

#[test]
fn ranks_in_different_calls_are_told_from_a_call_that_does_not_end() {
    let line = |sights: &[Sight]| judge(sights, STALL_SECONDS).expect("a stall").describe(sights);
    let sights = [waits(0, "a"), waits(1, "b"), waits(2, "a")];
    check(&sights, 1, Cause::Mismatch(0));
    assert!(line(&sights).contains("is in another call than rank 0, which is in a"));
    check(&[waits(0, "a"), waits(1, "b")], 1, Cause::Mismatch(0));
    let sights = [waits(0, "a"), waits(1, "a")];
    check(&sights, 1, Cause::Network);
    assert!(line(&sights).contains("waiting for it: rank 0 in call 7 a for 12 s"));
}

#[test]
fn a_frame_comes_back_and_what_does_not_fit_is_cut() {
    let doing = Doing {
        changes: 3,
        step: 12,
        steps_begun: 2,
        round: 1,
        phase: "backward".to_owned(),
        unit: "x".repeat(300),
    };
    let waiting = Waiting { sequence: 9, call: "all_reduce `a`".to_owned(), millis: 5 };
    let mut beat = Beat {
        doing,
        idle_millis: 4,
        waiting: Some(waiting),
        disk_threads: 2,
        witnessed: vec![(1, b'T'); 20],
        ..Beat::of(Kind::Raised, 1_000_000, "\u{e4}\u{1b}[2J")
    };
    let back = Beat::decode(&beat.encode()).expect("a frame");
    beat.doing.unit.truncate(48);
    beat.witnessed.truncate(8);
    // What a terminal would act on has become blank.
    beat.note = "\u{e4} [2J".to_owned();
    assert_eq!(back, beat);
}

#[test]
fn no_frame_of_arbitrary_bytes_is_a_danger() {
    let mut state = 1_u64;
    for round in 0..10_000 {
        let mut frame = Beat::of(Kind::Beat, 1, "note").encode();
        for byte in frame.iter_mut().skip(if round % 2 == 0 { 4 } else { 0 }) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        if let Some(beat) = Beat::decode(&frame) {
            assert!(beat.note.len() <= 3 * FRAME_BYTES && beat.witnessed.len() <= 8);
        }
    }
}

#[test]
fn a_pulse_shows_what_was_said_last_and_that_it_has_changed() {
    let pulse = Pulse::default();
    assert_eq!(pulse.read().describe(), "before the first step, phase start");
    let seen = pulse.clone();
    pulse.begin_step(12);
    pulse.begin_round(1);
    pulse.show("backward", "block 3");
    let doing = seen.read();
    assert_eq!(doing.describe(), "in step 12, phase backward, unit block 3, micro-batch 1");
    pulse.show("backward", "block 3");
    assert!(seen.read().changes > doing.changes);
}

#[test]
fn a_process_is_seen_from_outside() {
    let own = std::process::id();
    let (state, started) = process::state(own).expect("this process");
    assert!("RSD".contains(state) && started > 0);
    assert!(process::kernel_stacks(own).contains("thread "));
    assert_eq!(process::state(u32::MAX), None);
}
