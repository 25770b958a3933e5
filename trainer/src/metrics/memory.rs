//! The memory this process has needed, from the kernel's own count.

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
