//! Tells the linker where libtorch lies, and the program where to find it at run time, so that
//! neither building nor running needs an environment variable; and tells the program its source.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

fn main() {
    find_libtorch();
    name_source();
}

/// `GROVE_SOURCE`: a number for all source files and the exact versions of dependencies, by which
/// ranks can tell that they run the same program.
fn name_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut hasher = DefaultHasher::new();
    for part in ["Cargo.lock", "data/src", "optim/src", "parallel/src", "trainer/src"] {
        let path = root.join(part);
        println!("cargo::rerun-if-changed={}", path.display());
        hash_files(&path, &mut hasher);
    }
    println!("cargo::rustc-env=GROVE_SOURCE={:016x}", hasher.finish());
}

fn hash_files(path: &Path, hasher: &mut DefaultHasher) {
    if let Ok(entries) = fs::read_dir(path) {
        let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        entries.iter().for_each(|entry| hash_files(entry, hasher));
    } else if let Ok(content) = fs::read(path) {
        path.file_name().hash(hasher);
        content.hash(hasher);
    }
}

fn find_libtorch() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let libraries = match std::env::var_os("LIBTORCH") {
        Some(folder) => PathBuf::from(folder).join("lib"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.libtorch/torch/lib"),
    };
    let libraries = libraries.canonicalize().unwrap_or(libraries);
    let folder = libraries.display();
    println!("cargo::rustc-link-search=native={folder}");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    // NVRTC lies beside libtorch, as scripts/setup lays them out; it is opened by name.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}/../../nvidia/cu13/lib");
    // Kernels are registered by initializers that no symbol refers to.
    println!("cargo::rustc-link-arg=-Wl,--no-as-needed");
}
