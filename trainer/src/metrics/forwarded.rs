//! A terminal that this process does not hold itself: a launcher passes on what is written to
//! stdout. So it cannot be asked for anything, and cursor movements are written as they are
//! (ECMA-48, section 8.3).

use std::io::{self, Write, stdout};

use indicatif::TermLike;

/// The terminal behind stdout.
#[derive(Debug)]
pub(super) struct Forwarded {
    /// Its width.
    pub(super) columns: u16,
}

fn write(text: &str) -> io::Result<()> {
    stdout().write_all(text.as_bytes())
}

/// `CSI n` and the movement's letter; nothing for no movement.
fn movement(count: usize, letter: char) -> io::Result<()> {
    if count == 0 { Ok(()) } else { write(&format!("\x1b[{count}{letter}")) }
}

impl TermLike for Forwarded {
    fn width(&self) -> u16 {
        self.columns
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        movement(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        movement(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        movement(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        movement(n, 'D')
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        write(line)?;
        write("\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        write(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        write("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        stdout().flush()
    }
}

impl Drop for Forwarded {
    /// What comes after the bar starts on a line of its own.
    fn drop(&mut self) {
        let _ = write("\n");
    }
}
