//! Writes where libtorch lies into the test and example binaries, so that they start without
//! `LD_LIBRARY_PATH`. A library's link arguments do not reach those who depend on it, so each
//! crate with binaries does this for itself.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(libtorch) = std::env::var_os("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath={}/lib", libtorch.to_string_lossy());
    }
}
