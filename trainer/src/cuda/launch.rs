//! The kernels on a GPU, by its driver.
#![allow(unsafe_code, reason = "kernels are launched on raw device memory")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::{
    self, CudaContext, CudaFunction, CudaStream, DeviceRepr, DriverError, LaunchConfig,
    PushKernelArg,
};
use cudarc::nvrtc::{self, CompileError, CompileOptions, Ptx};

use super::error::CudaError;
use super::source::{Kernel, SOURCES, Source};
use super::{Call, Form, Grid};

/// The oldest GPUs that CUDA 13 knows; the driver translates for the GPU that is there.
const ARCHITECTURE: &str = "compute_75";

/// Who runs kernels: a GPU or, in tests, the host.
pub(super) trait Launch {
    /// Runs a kernel, or queues it behind what libtorch was asked before.
    ///
    /// # Safety
    /// The call's addresses must be memory of the device, as long and of the dtypes that the kernel
    /// takes for the call's sizes, and stay so until what is queued is done.
    unsafe fn launch(&self, kernel: Kernel, form: Form, grid: Grid, call: &Call);

    /// Queues launches from here on behind those of another stream, `None` for libtorch's default
    /// one. The caller takes care that libtorch queues there too.
    fn queue_on(&self, stream: Option<Arc<CudaStream>>);
}

/// The kernels of all layers on one GPU. Launches are queued on libtorch's default stream there, or
/// where work is recorded, so they come after what libtorch was asked before, and before what it is
/// asked next.
#[derive(Debug)]
pub struct Kernels {
    default_stream: Arc<CudaStream>,
    /// Where launches are queued.
    stream: RefCell<Arc<CudaStream>>,
    functions: BTreeMap<(Kernel, Form), CudaFunction>,
}

// SAFETY: plain old data, laid out as the kernels' parameter (`#[repr(C)]`).
unsafe impl DeviceRepr for Call {}

impl Kernels {
    /// Compiles and loads the kernels for GPU number `ordinal`: about a second.
    ///
    /// # Errors
    /// [`CudaError::Library`] if the driver or NVRTC is not there, [`CudaError::Refused`] if one
    /// refuses.
    pub fn load(ordinal: usize) -> Result<Self, CudaError> {
        let context = context(ordinal)?;
        let mut functions = BTreeMap::new();
        for source in SOURCES {
            let module =
                context.load_module(compile(source)?).map_err(refused("cuModuleLoadData"))?;
            for &kernel in source.kernels {
                for form in [Form::Bf16, Form::F32] {
                    let function = module.load_function(&kernel.name(form));
                    let function = function.map_err(refused("cuModuleGetFunction"))?;
                    functions.insert((kernel, form), function);
                }
            }
        }
        let default_stream = context.default_stream();
        Ok(Self { stream: RefCell::new(Arc::clone(&default_stream)), default_stream, functions })
    }
}

/// The compute capability of GPU number `ordinal`, such as `(9, 0)`.
///
/// # Errors
/// As [`Kernels::load`].
pub fn compute_capability(ordinal: usize) -> Result<(i32, i32), CudaError> {
    context(ordinal)?.compute_capability().map_err(refused("cuDeviceGetAttribute"))
}

pub(super) fn context(ordinal: usize) -> Result<Arc<CudaContext>, CudaError> {
    // SAFETY: it looks whether a library can be opened.
    if !unsafe { driver::sys::is_culib_present() } {
        return Err(CudaError::Library { library: "CUDA's driver (libcuda.so)" });
    }
    CudaContext::new(ordinal).map_err(refused("cuDevicePrimaryCtxRetain"))
}

impl Launch for Kernels {
    unsafe fn launch(&self, kernel: Kernel, form: Form, grid: Grid, call: &Call) {
        let function = self.functions.get(&(kernel, form)).expect("all kernels were loaded");
        let config = LaunchConfig {
            grid_dim: (grid.blocks, 1, 1),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: 0,
        };
        let stream = self.stream.borrow();
        let mut launch = stream.launch_builder(function);
        launch.arg(call);
        // SAFETY: the argument is the kernel's; the caller vouches for its addresses.
        let launched = unsafe { launch.launch(config) };
        if let Err(error) = launched.map_err(refused("cuLaunchKernel")) {
            panic!("{}: {error}", kernel.name(form));
        }
    }

    fn queue_on(&self, stream: Option<Arc<CudaStream>>) {
        self.stream.replace(stream.unwrap_or_else(|| Arc::clone(&self.default_stream)));
    }
}

/// Launches on addresses that come from `address`.
pub(super) fn on_checked_tensors(
    launcher: &dyn Launch,
    (kernel, form): (Kernel, Form),
    grid: Grid,
    call: &Call,
) {
    // SAFETY: the operations of this module take each address from a tensor whose dtype and number
    // of elements `address` has held against what the kernel takes for the call's sizes; tensors
    // are of the device that the model computes on. libtorch frees memory in the order of the same
    // stream, so that the tensors outlast the kernel.
    unsafe { launcher.launch(kernel, form, grid, call) }
}

/// The kernels of a file as PTX.
pub(super) fn compile(source: &Source) -> Result<Ptx, CudaError> {
    // SAFETY: it looks whether a library can be opened.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return Err(CudaError::Library { library: "CUDA's run-time compiler (libnvrtc.so)" });
    }
    let options = CompileOptions {
        options: vec![format!("--gpu-architecture={ARCHITECTURE}")],
        name: Some(format!("{}.cu", source.name)),
        ..CompileOptions::default()
    };
    nvrtc::compile_ptx_with_opts(source.whole(), options).map_err(|error| {
        let (code, message) = match &error {
            CompileError::CompileError { nvrtc, log, .. } => {
                (nvrtc.0 as u32, log.to_string_lossy().trim().to_owned())
            }
            CompileError::CreationError(nvrtc)
            | CompileError::GetLogError(nvrtc)
            | CompileError::GetPtxError(nvrtc)
            | CompileError::DestroyError(nvrtc) => (nvrtc.0 as u32, "no PTX".to_owned()),
        };
        CudaError::Refused { function: "nvrtcCompileProgram", code, message }
    })
}

/// Turns the driver's error into ours.
pub(super) fn refused(function: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| {
        let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
        let message = text.unwrap_or_else(|_| "no text for this code".to_owned());
        CudaError::Refused { function, code: error.0 as u32, message }
    }
}
