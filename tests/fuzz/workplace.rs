//! A folder in which one file is written again and again and read by what is tested.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use crate::memory::peak_bytes;
use crate::mutation::inputs;

/// Memory that a reader may take whatever the file: its buffers for reading and hashing, paths
/// and messages.
const FIXED_BYTES: usize = 3 << 20;

/// Memory that a reader may take for each byte of its input: small entries of a JSON or TOML table
/// become nodes of maps and texts of their own.
const BYTES_A_BYTE: usize = 64;

/// A folder for the files of one test.
pub(crate) struct Workplace {
    folder: TempDir,
}

impl Workplace {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().expect("a temporary folder") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, with its folder, and returns its path.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
        // A new file: the one before may still be mapped.
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).expect("a file");
        path
    }

    /// Reads `name` again and again with other content, and checks that the reader neither panics
    /// nor takes more memory than its input explains. The valid content must be read.
    pub(crate) fn fuzz(&self, name: &str, read: impl Fn(&Path) -> bool) {
        let path = self.path(name);
        let valid = fs::read(&path).expect("a valid file to begin with");
        assert!(read(&path), "the valid {name} is read");
        // Failures are printed whole; files of seeds would be new at the top level.
        let config = Config { failure_persistence: None, ..Config::default() };
        let outcome = TestRunner::new(config).run(&inputs(valid.clone()), |bytes| {
            self.write(name, &bytes);
            let peak = peak_bytes(|| {
                std::hint::black_box(read(&path));
            });
            let allowed = FIXED_BYTES + BYTES_A_BYTE * bytes.len().max(valid.len());
            proptest::prop_assert!(peak <= allowed, "{} bytes took {peak}", bytes.len());
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
