//! What a rank is doing, in a small file that outlives it: a process that was killed cannot say
//! what it died in, but whoever finds the file can.
#![allow(unsafe_code, reason = "mapping a file into memory")]

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use memmap2::{MmapMut, MmapOptions};

/// Bytes of a beacon's file: one line, filled up with spaces.
const FILE_BYTES: usize = 256;

/// The folder of beacons in a run's folder.
const FOLDER: &str = "ranks";

/// A line of text that this process keeps true, and that stays when it dies.
///
/// It is memory that the kernel writes out: showing something costs a few hundred nanoseconds. On a
/// network file system other hosts see it some seconds later.
#[derive(Debug)]
pub struct Beacon {
    map: MmapMut,
    host: String,
    step: u64,
}

impl Beacon {
    /// Lights the beacon of a rank in the run's folder.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn light(run_folder: &Path, rank: usize, host: &str) -> io::Result<Self> {
        let path = path_of(run_folder, rank);
        fs::create_dir_all(run_folder.join(FOLDER))?;
        // Not cut first: a job that is still running may have the file mapped, and would die of it.
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        // Written, not only sized: a hole that the disk has no room for would end the process.
        file.write_all(&[b' '; FILE_BYTES])?;
        // SAFETY: the file has FILE_BYTES bytes from here on, as nothing ever cuts it; that another
        // process may write to it harms nothing, for any bytes will do.
        let map = unsafe { MmapOptions::new().len(FILE_BYTES).map_mut(&file)? };
        let mut beacon = Self { map, host: host.to_owned(), step: 0 };
        beacon.show("start", "");
        Ok(beacon)
    }

    /// Says which step follows.
    pub fn begin_step(&mut self, step: u64) {
        self.step = step;
    }

    /// Shows a phase and, unless empty, a unit.
    pub fn show(&mut self, phase: &str, unit: &str) {
        let Self { map, host, step } = self;
        let mut rest: &mut [u8] = map;
        // What does not fit is cut off: the phase comes before the host for that.
        let _ = io::Write::write_fmt(
            &mut rest,
            format_args!("step={step}\tphase={phase}\tunit={unit}\thost={host}\t"),
        );
        rest.fill(b' ');
        map[FILE_BYTES - 1] = b'\n';
    }
}

/// What a beacon showed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastSeen {
    /// The step under way, from 1; 0 before the first.
    pub step: u64,
    /// The phase, as in the step records, or `start`, `eval`, `save`, `sample`.
    pub phase: String,
    /// The unit; empty outside of units.
    pub unit: String,
    /// The host.
    pub host: String,
}

impl LastSeen {
    /// Reads the beacon of a rank.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn read(run_folder: &Path, rank: usize) -> io::Result<Self> {
        let text = fs::read_to_string(path_of(run_folder, rank))?;
        let field = |name: &str| {
            let found = text.split('\t').find_map(|part| part.strip_prefix(name));
            found.and_then(|rest| rest.strip_prefix('=')).unwrap_or_default().to_owned()
        };
        let step = field("step").parse().unwrap_or(0);
        Ok(Self { step, phase: field("phase"), unit: field("unit"), host: field("host") })
    }

    /// In words: `in step 12, phase backward, unit block 3`.
    pub fn describe(&self) -> String {
        let unit =
            if self.unit.is_empty() { String::new() } else { format!(", unit {}", self.unit) };
        match self.step {
            0 => format!("before the first step, phase {}{unit}", self.phase),
            step => format!("in step {step}, phase {}{unit}", self.phase),
        }
    }
}

fn path_of(run_folder: &Path, rank: usize) -> PathBuf {
    run_folder.join(FOLDER).join(rank.to_string())
}

#[cfg(test)]
mod tests;
