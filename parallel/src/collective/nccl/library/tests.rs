//! What a host without CUDA is told, and where libraries are looked for.

use std::path::PathBuf;

use super::{DRIVER, NCCL, NVRTC, OLDEST_NCCL, Search, Version, beside_libtorch};
use crate::error::{Error, GpuError};

/// An empty folder of its own for one test, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("grove-parallel-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that stays behind harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_missing_library_is_named_with_the_places_and_the_remedy() {
    let folder = Folder::new("missing");
    let search = Search::only(folder.0.clone());
    let place = folder.0.display().to_string();
    for (wanted, library, name, remedy) in [
        (&DRIVER, "CUDA's driver", "libcuda.so.1", "install NVIDIA's driver"),
        (&NVRTC, "CUDA's run-time compiler", "libnvrtc.so.13", "install nvidia-cuda-nvrtc"),
        (&NCCL, "NCCL", "libnccl.so.2", "backend = \"mpi\""),
    ] {
        let message = search.find(wanted).unwrap_err().to_string();
        for part in [library, name, remedy, &place, "there is no such file"] {
            assert!(message.contains(part), "{part:?} in {message}");
        }
    }
    // The driver is looked for first, and nothing is called before all are there.
    let Err(Error::Gpu(GpuError::Library { library, .. })) = search.open() else {
        panic!("an empty folder has no driver");
    };
    assert_eq!(library, "CUDA's driver");
}

#[test]
fn a_file_that_is_no_library_is_refused_with_the_loaders_reason() {
    let folder = Folder::new("garbage");
    std::fs::write(folder.0.join("libnccl.so.2"), b"not a library").unwrap();
    let message = Search::only(folder.0.clone()).find(&NCCL).unwrap_err().to_string();
    assert!(message.contains("libnccl.so.2") && !message.contains("no such file"), "{message}");
}

#[test]
fn a_library_without_a_function_is_refused_by_name() {
    // Any library without NCCL's functions will do; this one is in every process.
    let search = Search { by_loader: true, folders: Vec::new() };
    // SAFETY: the C library is loaded already.
    let library = unsafe { libloading::Library::new("libc.so.6") }.unwrap();
    let message = super::Nccl::link(&search, library).unwrap_err().to_string();
    assert!(message.contains("it has no ncclGetVersion"), "{message}");
}

#[test]
fn wheels_are_found_beside_libtorch() {
    let root = Folder::new("wheels");
    for folder in ["torch/lib", "nvidia/nccl/lib"] {
        std::fs::create_dir_all(root.0.join(folder)).unwrap();
    }
    let mapped = format!(
        "7f00-7f01 r-xp 00000000 08:01 42    /usr/lib/libc.so.6\n\
         7f02-7f03 r-xp 00000000 08:01 43    {0}/torch/lib/libtorch_cpu.so\n\
         7f03-7f04 rw-p 00000000 08:01 43    {0}/torch/lib/libtorch_cpu.so\n\
         7f04-7f05 rw-p 00000000 00:00 0     [heap]\n",
        root.0.display()
    );
    let expected = root.0.canonicalize().unwrap().join("nvidia/nccl/lib");
    assert_eq!(beside_libtorch(&mapped), [expected]);
}

#[test]
fn versions_are_ordered_and_printed_as_nccl_does() {
    assert_eq!(Version(22_809).to_string(), "2.28.9");
    assert_eq!(OLDEST_NCCL.to_string(), "2.18.0");
    assert!(Version(21_706) < OLDEST_NCCL && Version(21_801) > OLDEST_NCCL);
}
