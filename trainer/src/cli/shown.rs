//! Numbers as people read them.

use std::time::Duration;

/// A size in the largest decimal unit that leaves a digit before the point: `1.2 GB`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, f64); 4] = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let unit = UNITS.iter().find(|(_, size)| bytes as f64 >= *size);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(name, size)| format!("{:.1} {name}", bytes as f64 / size),
    )
}

/// A time in its largest unit: `3 h`.
pub(super) fn age(age: Duration) -> String {
    const UNITS: [(&str, u64); 3] = [("d", 86_400), ("h", 3_600), ("min", 60)];
    let seconds = age.as_secs();
    let unit = UNITS.iter().find(|(_, size)| seconds >= *size);
    unit.map_or_else(|| format!("{seconds} s"), |(name, size)| format!("{} {name}", seconds / size))
}
