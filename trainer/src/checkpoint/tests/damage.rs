//! Damaged, foreign and unfinished files are named, and a full disk harms nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::super::*;
use super::shared::save_by;
use super::{contents, names_in, saved};

/// Size of the file system that the disk-full test fills.
const TINY_DISK_BYTES: usize = 256 * 1024;

/// Flips one bit of the byte at `position` (from the end of the file).
fn flip(path: &Path, position_from_end: usize) {
    let mut bytes = fs::read(path).unwrap();
    let position = bytes.len() - 1 - position_from_end;
    bytes[position] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn findings(outcome: Result<impl std::fmt::Debug, Error>) -> Vec<Finding> {
    match outcome {
        Err(Error::Damaged { findings, .. }) => findings,
        other => panic!("expected Damaged, found {other:?}"),
    }
}

#[test]
fn a_flipped_bit_is_named_by_verify() {
    for file in ["model.safetensors", "grove/masters.safetensors", "grove/optimizer.safetensors"] {
        let (_run, folder) = saved(10);
        flip(&folder.join(file), 2);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let found = findings(checkpoint.verify());
        assert!(matches!(&found[..], [Finding::Content { file: named, .. }] if named == file));
    }
}

#[test]
fn cut_missing_and_foreign_files_are_named_at_once() {
    let (run, folder) = saved(10);
    let masters = folder.join("grove/masters.safetensors");
    let whole = fs::read(&masters).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    // A new file rather than a shorter one: the open checkpoint still maps the old.
    fs::remove_file(&masters).unwrap();
    fs::write(&masters, &whole[..whole.len() - 4]).unwrap();
    fs::remove_file(folder.join("config.json")).unwrap();
    fs::write(folder.join("grove/notes.txt"), "mine").unwrap();

    let missing = Finding::Missing { file: "config.json".to_string() };
    let cut = Finding::Size {
        file: "grove/masters.safetensors".to_string(),
        expected_bytes: whole.len() as u64,
        found_bytes: whole.len() as u64 - 4,
    };
    let foreign = Finding::Foreign { file: "grove/notes.txt".to_string() };
    let error = Checkpoint::open(&folder).unwrap_err();
    assert!(error.to_string().contains("config.json is missing; grove/masters.safetensors has"));
    assert_eq!(findings(Err::<(), _>(error)), [missing.clone(), cut.clone()]);
    assert_eq!(findings(checkpoint.verify()), [missing, cut, foreign]);
    assert_eq!(latest(run.path()).unwrap(), None);
}

#[test]
fn a_file_that_is_no_safetensors_is_named() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    for content in [&b""[..], &[0xff; 64][..], &b"\x02\0\0\0\0\0\0\0{}tail"[..]] {
        fs::write(&path, content).unwrap();
        let error = TensorFile::open(&path).unwrap_err();
        assert!(matches!(&error, Error::Header { path: named, .. } if *named == path), "{error}");
    }
    let header = br#"{"n":{"dtype":"I64","shape":[0],"data_offsets":[0,0]}}"#;
    let content = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    fs::write(&path, content).unwrap();
    let error = TensorFile::open(&path).unwrap_err().to_string();
    assert!(error.contains("\"n\"") && error.contains("I64"), "{error}");
}

#[test]
fn a_manifest_of_another_version_is_refused() {
    let (_run, folder) = saved(10);
    let path = folder.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let error = Checkpoint::open(&folder).unwrap_err().to_string();
    assert!(error.contains("format is 2, expected 1"), "{error}");
}

/// A tiny file system, unmounted when dropped.
struct TinyDisk {
    folder: TempDir,
}

impl TinyDisk {
    /// `None` (with the reason printed) where we may not mount.
    fn mount() -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let size = format!("size={TINY_DISK_BYTES}");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path());
        match command.output() {
            Ok(output) if output.status.success() => Some(Self { folder }),
            outcome => {
                eprintln!("skipped: cannot mount a tmpfs: {outcome:?}");
                None
            }
        }
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // Lazily, for after a failed assertion a file on it may still be mapped.
        let status = Command::new("umount").arg("-l").arg(self.folder.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot unmount the tiny disk");
    }
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_and_nothing_else() {
    let Some(disk) = TinyDisk::mount() else { return };
    let run = disk.folder.path();
    let folder = save(run, &contents(10, 100)).unwrap();
    let error = save(run, &contents(20, TINY_DISK_BYTES / 4)).unwrap_err();
    match &error {
        Error::Save { path, needed_bytes, cause } => {
            assert!(path.starts_with(run.join("checkpoints/.partial-step-00000020")));
            assert!(*needed_bytes > TINY_DISK_BYTES as u64);
            assert_eq!(cause.kind(), std::io::ErrorKind::StorageFull);
        }
        other => panic!("expected Save, found {other}"),
    }
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert_eq!(names_in(&run.join("checkpoints")), ["step-00000010"]);
    Checkpoint::open(&folder).unwrap().verify().unwrap();
    save(run, &contents(30, 100)).unwrap();
}

#[test]
fn a_disk_that_is_full_at_any_stage_of_a_save_costs_that_save_alone() {
    const PAGE_BYTES: usize = 4096;
    let Some(disk) = TinyDisk::mount() else { return };
    let run = disk.folder.path();
    let folder = save_by(run, &contents(10, 100), 2).unwrap();
    let fill = |free_pages: usize| {
        let ballast = run.join("ballast");
        let _ = fs::remove_file(&ballast);
        let free = fs::File::create(&ballast).unwrap();
        // Until nothing more goes in; then a little less.
        let mut pages = 0;
        while std::io::Write::write_all(&mut &free, &[1; PAGE_BYTES]).is_ok() {
            pages += 1;
        }
        free.set_len((pages - free_pages.min(pages)) as u64 * PAGE_BYTES as u64).unwrap();
    };
    let mut failed_at = std::collections::BTreeSet::new();
    for free_pages in 0.. {
        fill(free_pages);
        let saved = save_by(run, &contents(20, 5000), 2);
        assert_eq!(
            fs::read_link(run.join("latest")).unwrap(),
            match &saved {
                Ok(_) => Path::new("checkpoints/step-00000020"),
                Err(_) => Path::new("checkpoints/step-00000010"),
            }
        );
        Checkpoint::open(&folder).unwrap().verify().unwrap();
        match saved {
            Ok(second) => {
                Checkpoint::open(&second).unwrap().verify().unwrap();
                break;
            }
            Err(Error::Save { path, cause, .. }) => {
                assert_eq!(cause.kind(), std::io::ErrorKind::StorageFull, "{}", path.display());
                assert_eq!(names_in(&run.join("checkpoints")), ["step-00000010"]);
                failed_at.insert(path.file_name().unwrap().to_string_lossy().into_owned());
            }
            Err(other) => panic!("expected Save, found {other}"),
        }
    }
    // The manifest finds room where the receipts were that it replaces.
    for stage in ["model.safetensors", "masters.safetensors", "run.json", ".receipt-0"] {
        assert!(failed_at.contains(stage), "{stage}: {failed_at:?}");
    }
}
