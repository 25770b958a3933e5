//! What every thread of a rank is in, for the file that a stalled run leaves.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::thread::JoinHandle;

use grove_parallel::collective::Ledger;

use super::{backtrace, process};

/// Appends this rank's section to the file, in one write, as all ranks do.
pub(super) fn append_own(file: &Path, title: &str, ledger: &Ledger) -> io::Result<()> {
    let mut text = format!("== {title}\n");
    for call in ledger.in_flight() {
        let _ = writeln!(text, "in flight for {:.1} s: {}", call.waiting_seconds, call.call);
    }
    for call in ledger.recent().iter().rev().take(8) {
        let _ = writeln!(text, "done, in {:.6} s: {}", call.communication_seconds, call.call);
    }
    text += &process::kernel_stacks(std::process::id());
    append(file, &text)
}

/// Appends where this rank's threads are in the program, on a thread of its own, which may hang.
pub(super) fn append_own_backtraces(file: &Path, title: &str) -> io::Result<JoinHandle<()>> {
    let (file, title) = (file.to_owned(), title.to_owned());
    std::thread::Builder::new().name("grove-stacks".to_owned()).spawn(move || {
        let text = backtrace::user_stacks(&process::threads(std::process::id()));
        // What the kernel says of the threads has been written before.
        let _ = append(&file, &format!("== {title}, in the program\n{text}"));
    })
}

/// Appends the section of a rank of the same host that cannot do it itself.
pub(super) fn append_for(file: &Path, title: &str, pid: u32) -> io::Result<()> {
    append(file, &format!("== {title}, seen from beside it\n{}", process::kernel_stacks(pid)))
}

fn append(file: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().append(true).create(true).open(file)?.write_all(text.as_bytes())
}
