//! A lock is held by one at a time, and says by whom.

use tempfile::TempDir;

use super::{NotLocked, RunLock, utc};

#[test]
fn the_second_is_told_who_holds_the_lock() {
    let folder = TempDir::new().unwrap();
    let first = RunLock::take(folder.path(), "alpha").unwrap();
    match RunLock::take(folder.path(), "beta") {
        Err(NotLocked::Held { holder }) => {
            let expected = format!("process {} on alpha, since ", std::process::id());
            assert!(holder.starts_with(&expected), "{holder}");
        }
        other => panic!("expected Held, found {other:?}"),
    }
    drop(first);
    drop(RunLock::take(folder.path(), "beta").unwrap());
    assert!(matches!(RunLock::take(&folder.path().join("none"), "c"), Err(NotLocked::Io(_))));
}

#[test]
fn seconds_are_told_as_a_date() {
    // By `date -u -d @...`.
    assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
    assert_eq!(utc(951_782_399), "2000-02-28 23:59:59 UTC");
    assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 UTC");
    assert_eq!(utc(1_795_351_207), "2026-11-22 12:40:07 UTC");
}
