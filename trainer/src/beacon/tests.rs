//! What is shown is what is read, also when it is shorter than what was shown before.

use super::{Beacon, LastSeen};

#[test]
fn the_last_thing_shown_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut beacon = Beacon::light(folder.path(), 3, "node7").expect("a beacon");
    beacon.begin_step(12);
    beacon.show("backward", "a unit with a long name");
    beacon.show("forward", "block 1");
    let seen = LastSeen::read(folder.path(), 3).expect("a beacon");
    assert_eq!(seen.describe(), "in step 12, phase forward, unit block 1");
    assert_eq!(seen.host, "node7");
    beacon.show("save", "");
    let seen = LastSeen::read(folder.path(), 3).expect("a beacon");
    assert_eq!((seen.phase.as_str(), seen.unit.as_str()), ("save", ""));
}

#[test]
fn a_long_name_is_cut_and_harms_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut beacon = Beacon::light(folder.path(), 0, "host").expect("a beacon");
    beacon.show("forward", &"x".repeat(1000));
    let seen = LastSeen::read(folder.path(), 0).expect("a beacon");
    assert_eq!(seen.phase, "forward");
    assert_eq!(seen.describe().split(',').next(), Some("before the first step"));
}

#[test]
fn a_rank_without_a_beacon_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(LastSeen::read(folder.path(), 0).is_err());
}

#[test]
fn a_second_process_of_a_rank_does_not_end_the_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut first = Beacon::light(folder.path(), 0, "host").expect("a beacon");
    let file = folder.path().join("ranks/0");
    let inode = |path: &std::path::Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).map(|found| (found.ino(), found.len())).expect("a file")
    };
    let before = inode(&file);
    let _second = Beacon::light(folder.path(), 0, "host").expect("a beacon");
    assert_eq!(inode(&file), before);
    first.show("forward", "block 2");
    assert_eq!(LastSeen::read(folder.path(), 0).expect("a beacon").phase, "forward");
}
