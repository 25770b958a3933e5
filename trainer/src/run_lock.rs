//! One job at a time writes a run's folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The locked file in a run's folder.
const FILE: &str = "lock";

/// The right to write a run's folder, for as long as this exists: a lock of the operating system,
/// which ends with the process, however that ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// Why there is no lock.
#[derive(Debug)]
pub enum NotLocked {
    /// Another process has it, of which the file says this.
    Held {
        /// Host, process and time.
        holder: String,
    },
    /// The file cannot be made, or its file system has no locks.
    Io(io::Error),
}

impl RunLock {
    /// Takes the lock of a folder for a process on `host`, and says so in the file.
    ///
    /// # Errors
    /// [`NotLocked`]; at once, without waiting for the other.
    pub fn take(run_folder: &Path, host: &str) -> Result<Self, NotLocked> {
        let path = run_folder.join(FILE);
        let mut options = OpenOptions::new();
        // Not cut before it is ours: it says who holds it.
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(NotLocked::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(NotLocked::Io(error)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(NotLocked::Held { holder: holder.trim().to_owned() });
            }
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let said = format!("process {} on {host}, since {}\n", std::process::id(), utc(since));
        // The lock holds whether or not there is room for the words.
        let _ = file.set_len(0);
        let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(said.as_bytes()));
        Ok(Self { _file: file })
    }
}

/// Seconds since 1970 as a date and time, by the civil calendar (Hinnant 2013, "chrono-compatible
/// low-level date algorithms", `civil_from_days`).
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

#[cfg(test)]
mod tests;
