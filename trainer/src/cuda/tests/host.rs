//! The kernels compiled for the host: one thread does what the blocks and threads of a grid do.
#![allow(unsafe_code, reason = "functions of a library that was just compiled")]
#![allow(clippy::print_stderr, reason = "a test says what it skips")]

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use cudarc::driver::CudaStream;
use libloading::Library;
use tch::Kind;

use super::super::source::{Kernel, SOURCES};
use super::super::{Call, Form, Fused, Grid, Launch};

/// What makes the host's compiler take the kernels.
const SHIM: &str = r#"
#include <cmath>
#include <cstring>
using std::log; using std::sqrt;
#define __device__
#define __global__
#define __launch_bounds__(n)
#define __shared__ static
#define BARRIER
#define EACH_THREAD(t) for (int t = 0; t < (int)blockDim.x; t++)
struct Place { unsigned x; };
static Place blockIdx, blockDim, gridDim;
static unsigned __float_as_uint(float value) { unsigned u; std::memcpy(&u, &value, 4); return u; }
static float __uint_as_float(unsigned bits) { float f; std::memcpy(&f, &bits, 4); return f; }
#define __expf(value) std::exp((float)(value))
static float __fdividef(float a, float b) { return a / b; }
extern "C" void place(unsigned block, unsigned blocks, unsigned threads) {
    blockIdx.x = block; gridDim.x = blocks; blockDim.x = threads;
}
"#;

/// A few blocks do the work of any grid, so that a test sees them go round.
const HOST_BLOCKS: u32 = 3;

/// One library a source.
struct Host(&'static [Library]);

/// The kernels as [`Fused`] for CPU tensors; `None` where there is no compiler.
pub(super) fn fused(kind: Kind) -> Option<Fused> {
    static LIBRARIES: OnceLock<Option<Vec<Library>>> = OnceLock::new();
    let libraries = LIBRARIES.get_or_init(compile_all).as_ref()?;
    let form = super::super::form_of(kind).expect("a dtype with kernels");
    Some(Fused { launcher: Box::new(Host(libraries)), form })
}

fn compile_all() -> Option<Vec<Library>> {
    let folder = tempfile::tempdir().expect("a folder");
    SOURCES.iter().map(|source| compile(source.name, &source.whole(), folder.path())).collect()
}

fn compile(name: &str, text: &str, folder: &Path) -> Option<Library> {
    let (code, library) = (folder.join(format!("{name}.cpp")), folder.join(format!("{name}.so")));
    std::fs::write(&code, [SHIM, text].concat()).expect("a file");
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-O2", "-fno-strict-aliasing", "-shared", "-fPIC", "-o"]);
    match compiler.arg(&library).arg(&code).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Err(error) => {
            eprintln!("skipped: g++ does not start: {error}");
            return None;
        }
    }
    // SAFETY: the library was just made of functions without initializers.
    Some(unsafe { Library::new(&library) }.expect("a library"))
}

impl Launch for Host {
    unsafe fn launch(&self, kernel: Kernel, form: Form, grid: Grid, call: &Call) {
        let source = SOURCES.iter().position(|source| source.kernels.contains(&kernel));
        let library = &self.0[source.expect("each kernel is in a file")];
        let blocks = grid.blocks.min(HOST_BLOCKS);
        // SAFETY: those are the types of the shim's function and of every kernel; the caller vouches
        // for the addresses.
        unsafe {
            let place = library.get::<unsafe extern "C" fn(u32, u32, u32)>(b"place");
            let place = place.expect("the shim has it");
            let name = kernel.name(form);
            let function = library.get::<unsafe extern "C" fn(Call)>(name.as_bytes());
            let function = function.expect("a kernel of this name");
            for block in 0..blocks {
                place(block, blocks, grid.threads);
                function(*call);
            }
        }
    }

    /// Kernels run at once.
    fn queue_on(&self, _: Option<Arc<CudaStream>>) {}
}
