//! The memory this process has needed, from the kernel's own counts.

use std::fs;

/// The most resident memory this process has held since it began, in bytes.
///
/// Read from `VmHWM` of `/proc/self/status`; pages of mapped files that were touched count.
/// `None` where the system has no such file (not Linux).
#[must_use]
pub fn peak_resident_bytes() -> Option<u64> {
    parse_high_water_bytes(&fs::read_to_string("/proc/self/status").ok()?)
}

/// The value of the line `VmHWM:     1234 kB`, in bytes.
pub(super) fn parse_high_water_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// How many pages the system has given this process since it began: those it touched for the first
/// time, or again after it had given them back. A training step in its steady state asks for none.
///
/// Read from `minflt` of `/proc/self/stat`. `None` where the system has no such file (not Linux).
#[must_use]
pub fn pages_given() -> Option<u64> {
    parse_minor_faults(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// The tenth field of a line whose second is a name in brackets that may hold spaces.
pub(super) fn parse_minor_faults(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(7)?.parse().ok()
}
