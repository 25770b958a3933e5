//! Sums in rank order, and largest and smallest values, by kernels of our own: NCCL adds in an
//! order that it chooses, in one dtype, and its largest value forgets NaN.
#![allow(unsafe_code, reason = "kernels are launched on raw device memory")]

use std::sync::Arc;

use cudarc::{
    driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg},
    nvrtc::{self, CompileError, CompileOptions},
};

use super::{gpu::cuda, span::Span};
use crate::{
    collective::{Dtype, Onto},
    error::{Error, Result},
};

const SOURCE: &str = include_str!("fold.cu");

/// The oldest GPUs that CUDA 13 knows; the driver translates for the GPU that is there.
const ARCHITECTURE: &str = "compute_75";

const THREADS_PER_BLOCK: u32 = 256;
/// Enough to fill any GPU; longer spans go round.
const MAX_BLOCKS: u32 = 2048;

/// How contributions become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// One chain of additions in rank order.
    Sum(Onto),
    /// The largest; NaN if any is NaN.
    Largest,
    /// The smallest; NaN if any is NaN.
    Smallest,
}

/// The contributions of all ranks to `out.count` elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Folding {
    pub(super) how: How,
    /// Those of the peers, one after another in rank order.
    pub(super) peers: Span,
    /// This rank's.
    pub(super) own: Span,
    /// Where the result goes; may be `own`.
    pub(super) out: Span,
    pub(super) rank: usize,
    pub(super) degree: usize,
}

/// The kernels, compiled for this process.
#[derive(Debug)]
pub(super) struct Fold {
    sum_bf16_f32: CudaFunction,
    sum_f32_f32: CudaFunction,
    sum_f64_f64: CudaFunction,
    extreme_f32: CudaFunction,
    extreme_f64: CudaFunction,
}

impl Fold {
    /// Compiles and loads all kernels now: loading one while NCCL waits for a peer could have to
    /// wait for NCCL.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub(super) fn load(context: &Arc<CudaContext>) -> Result<Self> {
        let options = CompileOptions {
            options: vec![format!("--gpu-architecture={ARCHITECTURE}")],
            name: Some("fold.cu".to_owned()),
            ..CompileOptions::default()
        };
        let ptx = nvrtc::compile_ptx_with_opts(SOURCE, options).map_err(not_compiled)?;
        let module = context.load_module(ptx).map_err(cuda("cuModuleLoadData"))?;
        let function = |name: &str| module.load_function(name).map_err(cuda("cuModuleGetFunction"));
        Ok(Self {
            sum_bf16_f32: function("sum_bf16_f32")?,
            sum_f32_f32: function("sum_f32_f32")?,
            sum_f64_f64: function("sum_f64_f64")?,
            extreme_f32: function("extreme_f32")?,
            extreme_f64: function("extreme_f64")?,
        })
    }

    /// Queues a folding on `stream`.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub(super) fn run(&self, stream: &CudaStream, folding: &Folding) -> Result<()> {
        let Folding { how, peers, own, out, rank, degree } = *folding;
        let count = out.count as u64;
        assert!(own.count == out.count && peers.count == out.count * (degree - 1), "{folding:?}");
        if count == 0 {
            return Ok(());
        }
        let blocks = out.count.div_ceil(THREADS_PER_BLOCK as usize).min(MAX_BLOCKS as usize) as u32;
        let config = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (THREADS_PER_BLOCK, 1, 1),
            shared_mem_bytes: 0,
        };
        let addresses = [peers, own, out].map(Span::device_address);
        let numbers = [rank as i32, degree as i32, mode(how)];
        let mut launch = stream.launch_builder(self.function(how, own.dtype, out.dtype));
        launch.arg(&addresses[0]).arg(&addresses[1]).arg(&addresses[2]).arg(&count);
        launch.arg(&numbers[0]).arg(&numbers[1]).arg(&numbers[2]);
        // SAFETY: the arguments are those of the kernels, the kernel is that of the dtypes, and
        // each span is as long as the kernel reads and writes by the assertion above. The makers
        // of the spans keep the memory until the stream is done with it.
        unsafe { launch.launch(config) }.map_err(cuda("cuLaunchKernel"))?;
        Ok(())
    }

    fn function(&self, how: How, input: Dtype, output: Dtype) -> &CudaFunction {
        match (how, input, output) {
            (How::Sum(_), Dtype::Bf16, Dtype::F32) => &self.sum_bf16_f32,
            (How::Sum(_), Dtype::F32, Dtype::F32) => &self.sum_f32_f32,
            (How::Sum(_), Dtype::F64, Dtype::F64) => &self.sum_f64_f64,
            (How::Largest | How::Smallest, Dtype::F32, Dtype::F32) => &self.extreme_f32,
            (How::Largest | How::Smallest, Dtype::F64, Dtype::F64) => &self.extreme_f64,
            _ => unreachable!("{how:?} of {input} to {output} is refused when it is asked for"),
        }
    }
}

/// The last argument of the kernels.
fn mode(how: How) -> i32 {
    i32::from(matches!(how, How::Sum(Onto::Output) | How::Largest))
}

fn not_compiled(error: CompileError) -> Error {
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
}
