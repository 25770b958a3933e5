//! Tells the linker where libtorch lies, and the program where to find it at run time, so that
//! neither building nor running needs an environment variable.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let libraries = match std::env::var_os("LIBTORCH") {
        Some(folder) => PathBuf::from(folder).join("lib"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.libtorch/torch/lib"),
    };
    let libraries = libraries.canonicalize().unwrap_or(libraries);
    let folder = libraries.display();
    println!("cargo::rustc-link-search=native={folder}");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    // Kernels are registered by initializers that no symbol refers to.
    println!("cargo::rustc-link-arg=-Wl,--no-as-needed");
}
