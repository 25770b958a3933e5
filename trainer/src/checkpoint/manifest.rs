//! `manifest.json`: which files a checkpoint has, and how to tell that they are whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hash::hex;
use super::layout::MANIFEST;
use super::{Error, Finding};

/// The version of the folder's form that this code writes and reads.
const FORMAT: u32 = 1;

/// Bytes read at a time while a file is hashed.
const CHUNK_BYTES: usize = 1 << 20;

/// All files of a checkpoint but the manifest itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    /// The step of the checkpoint.
    pub(super) step: u64,
    /// By path in the folder, with `/`.
    pub(super) files: BTreeMap<String, FileEntry>,
}

/// What one file must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    /// Size.
    pub(super) bytes: u64,
    /// Hash of the content, in lower-case hexadecimal.
    pub(super) sha256: String,
}

impl Manifest {
    /// A manifest of these files in the current form.
    pub(super) fn new(step: u64, files: BTreeMap<String, FileEntry>) -> Self {
        Self { format: FORMAT, step, files }
    }

    /// Reads the manifest of `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(MANIFEST);
        let text = fs::read(&path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound if folder.is_dir() => {
                Error::NoManifest { folder: folder.to_path_buf() }
            }
            _ => Error::Io { action: "read", path: path.clone(), cause },
        })?;
        let manifest: Self = serde_json::from_slice(&text)
            .map_err(|error| Error::Json { path: path.clone(), reason: error.to_string() })?;
        if manifest.format != FORMAT {
            let reason = format!("format is {}, expected {FORMAT}", manifest.format);
            return Err(Error::Json { path, reason });
        }
        if let Some(file) = manifest.files.keys().find(|file| !stays_below(file)) {
            let reason = format!("file {file:?} is not below the checkpoint's folder");
            return Err(Error::Json { path, reason });
        }
        Ok(manifest)
    }

    /// Checks that each file is there and has its size; all failures are named at once.
    pub(super) fn check_sizes(&self, folder: &Path) -> Result<(), Error> {
        let findings = self.files.iter().filter_map(|(file, entry)| {
            let found = fs::metadata(folder.join(file)).ok().filter(fs::Metadata::is_file);
            size_finding(file, entry, found.map(|metadata| metadata.len()))
        });
        damaged_if_any(folder, findings.collect())
    }

    /// Checks the content of each file, and that there is no other file; all failures are named.
    pub(super) fn check_content(&self, folder: &Path) -> Result<(), Error> {
        let mut findings = Vec::new();
        for (file, entry) in &self.files {
            let path = folder.join(file);
            let found = fs::metadata(&path).ok().filter(fs::Metadata::is_file);
            let finding = size_finding(file, entry, found.map(|metadata| metadata.len()));
            if let Some(finding) = finding {
                findings.push(finding);
                continue;
            }
            let found_sha256 = hash_file(&path).map_err(|cause| Error::Io {
                action: "read",
                path: path.clone(),
                cause,
            })?;
            if found_sha256 != entry.sha256 {
                let (file, expected_sha256) = (file.clone(), entry.sha256.clone());
                findings.push(Finding::Content { file, expected_sha256, found_sha256 });
            }
        }
        let mut present = Vec::new();
        list_files(folder, folder, &mut present)?;
        present.retain(|file| file != MANIFEST && !self.files.contains_key(file));
        findings.extend(present.into_iter().map(|file| Finding::Foreign { file }));
        damaged_if_any(folder, findings)
    }
}

/// Whether a relative path names something below the folder that it starts from: parts with plain
/// names only.
pub(crate) fn stays_below(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    !file.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn damaged_if_any(folder: &Path, findings: Vec<Finding>) -> Result<(), Error> {
    if findings.is_empty() {
        return Ok(());
    }
    Err(Error::Damaged { folder: folder.to_path_buf(), findings })
}

fn size_finding(file: &str, entry: &FileEntry, found_bytes: Option<u64>) -> Option<Finding> {
    let (file, expected_bytes) = (file.to_string(), entry.bytes);
    match found_bytes {
        None => Some(Finding::Missing { file }),
        Some(found_bytes) if found_bytes != expected_bytes => {
            Some(Finding::Size { file, expected_bytes, found_bytes })
        }
        Some(_) => None,
    }
}

fn hash_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex(hasher.finalize().as_slice())),
            count => hasher.update(&chunk[..count]),
        }
    }
}

/// Adds the files below `folder` to `found`, by path relative to `root`, in name order.
fn list_files(root: &Path, folder: &Path, found: &mut Vec<String>) -> Result<(), Error> {
    let read = || {
        let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
        let mut paths = entries.collect::<io::Result<Vec<PathBuf>>>()?;
        paths.sort();
        Ok(paths)
    };
    let paths =
        read().map_err(|cause| Error::Io { action: "read", path: folder.to_path_buf(), cause })?;
    for path in paths {
        if path.is_dir() {
            list_files(root, &path, found)?;
        } else {
            let relative = path.strip_prefix(root).expect("read_dir stays below its folder");
            found.push(relative.to_string_lossy().into_owned());
        }
    }
    Ok(())
}
