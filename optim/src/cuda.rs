//! The update rules as CUDA kernels: one pass over memory, compiled for this process by NVRTC, with
//! the formulas and the rounding of the CPU's.
#![allow(unsafe_code, reason = "kernels are launched on raw device memory")]

mod source;

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::{
    self, CudaContext, CudaFunction, CudaStream, DeviceRepr, DriverError, LaunchConfig,
    PushKernelArg,
};
use cudarc::nvrtc::{self, CompileError, CompileOptions, Ptx};
use tch::{Device, Kind, Tensor};

use crate::elements::Scalars;
use crate::error::{Error, Result};
use crate::real::Real;
use crate::rule::Rule;
use crate::tensor::TensorElements;
use source::{Form, Numbers, Range};

/// The oldest GPUs that CUDA 13 knows; the driver translates for the GPU that is there.
const ARCHITECTURE: &str = "compute_75";
/// Threads of a block; where states are quantized, one for each element that shares a scale.
const THREADS_PER_BLOCK: u32 = 256;
/// Enough to fill any GPU; longer ranges go round.
const MAX_BLOCKS: u64 = 4096;

/// The kernels of some rules on one GPU. Updates are queued on libtorch's default stream there, so
/// they come after what libtorch was asked before, and before what it is asked next.
#[derive(Debug)]
pub struct Kernels {
    stream: Arc<CudaStream>,
    functions: BTreeMap<String, CudaFunction>,
}

// SAFETY: both are plain old data, laid out as the kernels' parameters (`#[repr(C)]`).
unsafe impl DeviceRepr for Range {}
// SAFETY: as above; a number is a float or a double.
unsafe impl<T: Real> DeviceRepr for Numbers<T> {}

impl Kernels {
    /// Compiles and loads the kernels of `rules` for GPU number `ordinal`: some tenths of a second
    /// each.
    ///
    /// # Errors
    /// [`Error::CudaLibrary`] if the driver or NVRTC is not there, [`Error::Cuda`] if one refuses.
    pub fn load(ordinal: usize, rules: &[Rule]) -> Result<Self> {
        // SAFETY: it looks whether a library can be opened.
        if !unsafe { driver::sys::is_culib_present() } {
            return Err(Error::CudaLibrary { library: "CUDA's driver (libcuda.so)" });
        }
        let context = CudaContext::new(ordinal).map_err(refused("cuDevicePrimaryCtxRetain"))?;
        let mut functions = BTreeMap::new();
        for rule in rules {
            let module =
                context.load_module(compile(rule)?).map_err(refused("cuModuleLoadData"))?;
            for form in Form::of(rule) {
                let name = form.kernel(rule);
                let function =
                    module.load_function(&name).map_err(refused("cuModuleGetFunction"))?;
                functions.insert(name, function);
            }
        }
        Ok(Self { stream: context.default_stream(), functions })
    }

    /// [`Rule::update_tensor`] in one kernel, with the bits of [`Rule::update`]. Where there is no
    /// kernel for the tensors' dtypes, it is [`Rule::update_tensor`].
    ///
    /// # Shapes
    /// As [`Rule::update`].
    ///
    /// # Errors
    /// As [`Rule::update_tensor`], and [`Error::Cuda`] if the kernel cannot be queued. A kernel's
    /// own failure comes with a later call of libtorch.
    pub fn update(&self, rule: &Rule, elements: TensorElements, scalars: &Scalars) -> Result<()> {
        let Some(form) = form_of(rule, &elements) else {
            return rule.update_tensor(elements, scalars);
        };
        let Some(function) = self.functions.get(&form.kernel(rule)) else {
            return rule.update_tensor(elements, scalars);
        };
        rule.check_tensors(&elements, scalars)?;
        let range = range_of(&elements, scalars);
        if range.count == 0 {
            return Ok(());
        }
        match form {
            Form::F64 | Form::F64Bf16 => {
                self.launch(function, &range, &source::numbers::<f64>(rule, scalars))
            }
            _ => self.launch(function, &range, &source::numbers::<f32>(rule, scalars)),
        }
    }

    fn launch<T: Real>(
        &self,
        function: &CudaFunction,
        range: &Range,
        numbers: &Numbers<T>,
    ) -> Result<()> {
        let blocks = range.count.div_ceil(u64::from(THREADS_PER_BLOCK)).min(MAX_BLOCKS) as u32;
        let config = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (THREADS_PER_BLOCK, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut launch = self.stream.launch_builder(function);
        launch.arg(range).arg(numbers);
        // SAFETY: the arguments are the kernel's, whose dtypes are those of the tensors; their
        // lengths were checked. libtorch frees memory in the order of the same stream, so the
        // tensors outlast the kernel.
        unsafe { launch.launch(config) }.map_err(refused("cuLaunchKernel"))?;
        Ok(())
    }
}

/// The kernel for these dtypes, if the rule has one and the tensors lie in one piece on a GPU.
fn form_of(rule: &Rule, elements: &TensorElements) -> Option<Form> {
    let TensorElements { master, grad, state, working, .. } = elements;
    let rounds = working.as_ref().is_none_or(|copy| copy.kind() == Kind::BFloat16);
    let on_gpu =
        |tensor: &Tensor| matches!(tensor.device(), Device::Cuda(_)) && tensor.is_contiguous();
    let fits = state.iter().all(|state| on_gpu(state))
        && working.as_ref().is_none_or(|copy| on_gpu(copy))
        && on_gpu(master)
        && on_gpu(grad)
        && grad.kind() == master.kind();
    let form = match (master.kind(), state.first()?.kind()) {
        (Kind::Float, Kind::Float) => Form::F32,
        (Kind::Double, Kind::Double) => Form::F64,
        (Kind::Float, Kind::BFloat16) => Form::F32Bf16,
        (Kind::Double, Kind::BFloat16) => Form::F64Bf16,
        (Kind::Float, Kind::Uint8) => Form::F32Codes,
        _ => return None,
    };
    (rounds && fits && Form::of(rule).contains(&form)).then_some(form)
}

fn range_of(elements: &TensorElements, scalars: &Scalars) -> Range {
    let address = |tensor: &Tensor| tensor.data_ptr() as u64;
    let mut state = [0; 4];
    for (address_of, tensor) in state.iter_mut().zip(&elements.state) {
        *address_of = address(tensor);
    }
    Range {
        master: address(elements.master),
        grad: address(elements.grad),
        state,
        working: elements.working.as_ref().map_or(0, |copy| address(copy)),
        count: elements.master.numel() as u64,
        first: elements.first as u64,
        keys: scalars.rounding().keys(),
    }
}

/// The kernels of a rule as PTX, without fused multiply-adds.
fn compile(rule: &Rule) -> Result<Ptx> {
    // SAFETY: it looks whether a library can be opened.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return Err(Error::CudaLibrary { library: "CUDA's run-time compiler (libnvrtc.so)" });
    }
    let options = CompileOptions {
        options: vec![format!("--gpu-architecture={ARCHITECTURE}"), "--fmad=false".to_owned()],
        name: Some(format!("{}.cu", rule.name())),
        ..CompileOptions::default()
    };
    nvrtc::compile_ptx_with_opts(source::source(rule), options).map_err(|error| {
        let (code, message) = match &error {
            CompileError::CompileError { nvrtc, log, .. } => {
                (nvrtc.0 as u32, log.to_string_lossy().trim().to_owned())
            }
            CompileError::CreationError(nvrtc)
            | CompileError::GetLogError(nvrtc)
            | CompileError::GetPtxError(nvrtc)
            | CompileError::DestroyError(nvrtc) => (nvrtc.0 as u32, "no PTX".to_owned()),
        };
        Error::Cuda { function: "nvrtcCompileProgram", code, message }
    })
}

/// Turns the driver's error into ours.
fn refused(function: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| {
        let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
        let message = text.unwrap_or_else(|_| "no text for this code".to_owned());
        Error::Cuda { function, code: error.0 as u32, message }
    }
}

#[cfg(test)]
mod tests;
