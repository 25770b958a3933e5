//! `metrics.jsonl`: every record of the run as one line of JSON, in step order, also over resumes.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::append_file::AppendFile;
use super::{Error, Record};

/// The open `metrics.jsonl` of a run.
#[derive(Debug)]
pub struct MetricsFile {
    file: AppendFile,
}

/// What decides whether a line outlives a resume. Any other keys are passed over.
#[derive(Deserialize)]
struct LineStep {
    step: Option<u64>,
}

impl MetricsFile {
    /// Opens `path` for a run that goes on after `resumed_step` (0 for a new run).
    ///
    /// Lines of later steps are removed, for the run is about to write them again; so is a line
    /// that is not whole. The file is replaced by one rename, and only if a line must go.
    ///
    /// # Errors
    /// [`Error::Open`] if the file cannot be read, replaced or opened; it is then as it was.
    pub fn open(path: &Path, resumed_step: u64) -> Result<Self, Error> {
        let prepare = || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            drop_later_lines(path, resumed_step)
        };
        prepare().map_err(|cause| Error::Open { path: path.to_path_buf(), cause })?;
        Ok(Self { file: AppendFile::open(path)? })
    }

    /// Appends one record as one line; other processes see it at once.
    ///
    /// # Errors
    /// [`Error::Append`] if the line could not be written whole; no part of it is left.
    pub fn write(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let mut line = serde_json::to_vec(record).map_err(|error| Error::Encode {
            path: self.file.path().to_path_buf(),
            step: record.step(),
            reason: error.to_string(),
        })?;
        line.push(b'\n');
        self.file.append(&line)
    }

    /// Puts the file on the disk.
    ///
    /// # Errors
    /// [`Error::Append`] if the operating system cannot.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.file.sync()
    }
}

/// Rewrites `path` without lines past `resumed_step` and without torn lines, if it has any.
fn drop_later_lines(path: &Path, resumed_step: u64) -> io::Result<()> {
    // A device or a pipe has no past to cut, and reading it may never end.
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => return Ok(()),
    }
    let mut all_kept = true;
    for_each_line(path, |line| {
        all_kept &= keeps(line, resumed_step);
        Ok(())
    })?;
    if all_kept {
        return Ok(());
    }
    let temporary = temporary_path(path);
    let rewrite =
        || {
            let mut out = BufWriter::new(File::create(&temporary)?);
            for_each_line(path, |line| {
                if keeps(line, resumed_step) { out.write_all(line) } else { Ok(()) }
            })?;
            out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&temporary, path)
        };
    rewrite().inspect_err(|_| {
        // The error that matters is the one at hand; a leftover temporary file is harmless.
        let _ = fs::remove_file(&temporary);
    })
}

/// Calls `visit` with each line, its newline included (the last may have none).
fn for_each_line(path: &Path, mut visit: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        visit(&line)?;
        line.clear();
    }
    Ok(())
}

/// Whether a line is whole and not of a later step. A line without a step is not ours to drop.
fn keeps(line: &[u8], resumed_step: u64) -> bool {
    let whole = line.ends_with(b"\n");
    let parsed = serde_json::from_slice::<LineStep>(line);
    whole && parsed.is_ok_and(|line| line.step.is_none_or(|step| step <= resumed_step))
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".partial");
    PathBuf::from(name)
}
