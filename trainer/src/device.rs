//! Which device a rank computes on, and how many threads it uses.
#![allow(unsafe_code, reason = "libtorch's CUDA library is opened by hand")]

use std::ffi::CStr;
use std::path::Path;

use grove_parallel::{Environment, Launch};
use tch::{Cuda, Kind, utils};

use crate::config::{Device as Wanted, Plan};
use crate::cuda::attention::{Shape, allow, choose_fastest};
use crate::cuda::{Fused, Kernels, compute_capability};
use crate::error::Error;
use crate::model::compute::Compute;
use crate::model::config::Precision;
use crate::model::fp8::Fp8;

/// The library that brings libtorch's CUDA kernels; the program does not link it, so that one
/// binary serves hosts with and without a GPU.
const LIBTORCH_CUDA: &CStr = c"libtorch_cuda.so";

/// The oldest GPUs with products of 8-bit numbers: Ada, then Hopper.
const FP8_CAPABILITY: (i32, i32) = (8, 9);

/// Present where NVIDIA's driver is loaded.
const DRIVER: &str = "/proc/driver/nvidia/version";

/// The device, dtype and threads of this rank.
///
/// A rank takes the GPU of its local rank. The threads are `parallel.threads`, else
/// `OMP_NUM_THREADS`, else the host's cores divided by its ranks; libtorch and this crate's
/// kernels share them.
///
/// # Errors
/// If CUDA was asked for and is missing, or there are more ranks than GPUs.
pub fn compute(plan: &Plan, launch: &Launch) -> Result<Compute, Error> {
    let device = choose(plan.device, launch)?;
    let kind = match plan.precision {
        Precision::Bf16 => Kind::BFloat16,
        Precision::Fp32 => Kind::Float,
        Precision::Fp64 => Kind::Double,
    };
    let num_threads = match plan.parallel.threads {
        0 => threads_by_environment(launch)?,
        threads => threads,
    };
    tch::set_num_threads(num_threads as i32);
    keep_freed_memory();
    let compute = Compute::new(device, kind, num_threads).with_fp8(plan.gpu.fp8);
    match device {
        tch::Device::Cuda(ordinal) => on_gpu(plan, compute, ordinal),
        _ => Ok(compute),
    }
}

/// What a GPU has beyond tensor operations, as the plan wants it.
fn on_gpu(plan: &Plan, compute: Compute, ordinal: usize) -> Result<Compute, Error> {
    if plan.gpu.fp8 != Fp8::Off {
        let (major, minor) = compute_capability(ordinal)?;
        if (major, minor) < FP8_CAPABILITY {
            return Err(Error::NoFp8 { major, minor });
        }
    }
    match plan.gpu.attention.backend() {
        Some(backend) => allow(backend)?,
        None => drop(choose_fastest(compute.device, compute.kind, attention_shape(plan))?),
    }
    if !plan.gpu.fused || compute.kind == Kind::Double {
        return Ok(compute);
    }
    let fused = Fused::new(Kernels::load(ordinal)?, compute.kind);
    Ok(compute.with_fused(fused))
}

/// The attention of a micro-batch.
fn attention_shape(plan: &Plan) -> Shape {
    let spec = plan.model.spec();
    Shape {
        batch_size: plan.batch.micro_batch_size as i64,
        sequence_length: plan.batch.sequence_length as i64,
        num_heads: spec.num_heads as i64,
        num_kv_heads: spec.num_kv_heads as i64,
        head_dim: spec.head_dim as i64,
        masked: plan.data.mask_documents.unwrap_or(plan.data.packing.minds_documents()),
    }
}

/// `OMP_NUM_THREADS`, else this host's cores divided by its ranks, at least 1.
fn threads_by_environment(launch: &Launch) -> Result<usize, Error> {
    let wanted = Environment::read()?.omp_num_threads;
    Ok(wanted.unwrap_or_else(|| (cores() / launch.local_size).max(1)))
}

/// Processors that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn choose(wanted: Wanted, launch: &Launch) -> Result<tch::Device, Error> {
    if wanted == Wanted::Cpu || (wanted == Wanted::Auto && !Path::new(DRIVER).exists()) {
        return Ok(tch::Device::Cpu);
    }
    let num_gpus = match open_cuda() {
        Ok(()) => usize::try_from(Cuda::device_count()).unwrap_or(0),
        Err(_) if wanted == Wanted::Auto => 0,
        Err(reason) => return Err(no_cuda(reason)),
    };
    match (num_gpus, wanted) {
        (0, Wanted::Auto) => Ok(tch::Device::Cpu),
        (0, _) => Err(no_cuda("libtorch sees no GPU".to_owned())),
        _ if launch.local_rank >= num_gpus => {
            Err(Error::TooFewGpus { local_rank: launch.local_rank, num_gpus })
        }
        _ => Ok(tch::Device::Cuda(launch.local_rank)),
    }
}

fn no_cuda(reason: String) -> Error {
    Error::NoCuda { reason, remedy: "run scripts/setup on a host with NVIDIA's driver" }
}

/// Registers libtorch's CUDA kernels with this process. Before the first call that asks for CUDA.
///
/// # Errors
/// Why the library cannot be opened, or that libtorch was asked for CUDA too early.
pub fn open_cuda() -> Result<(), String> {
    // SAFETY: the name is a C string; the library stays open for the life of the process, and its
    // initializers only register kernels with the libtorch that is already loaded.
    let handle =
        unsafe { libc::dlopen(LIBTORCH_CUDA.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        // libtorch looks for its CUDA part once, at the first call that asks for it, and stays with
        // what it found.
        return match utils::has_cudart() {
            true => Ok(()),
            false => Err("libtorch was asked for CUDA before its library was opened".to_owned()),
        };
    }
    // SAFETY: dlopen has just failed, so dlerror gives a C string that stays valid until the next
    // call of its family on this thread.
    let reason = unsafe { CStr::from_ptr(libc::dlerror()) };
    Err(reason.to_string_lossy().into_owned())
}

/// Lets the allocator keep what libtorch frees: a step allocates the same sizes again and again,
/// and fresh pages from the system would have to be zeroed each time.
fn keep_freed_memory() {
    const KEEP_BYTES: i32 = 1 << 30;
    // SAFETY: mallopt only sets parameters of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEEP_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP_BYTES);
    }
}

#[cfg(test)]
mod tests {
    //! Opening libtorch's CUDA library, where it can be found.
    #![allow(clippy::print_stderr, reason = "a test says what it skips")]

    use super::*;

    #[test]
    fn an_opened_library_has_registered_itself() {
        match open_cuda() {
            Ok(()) => assert!(utils::version_cudart() > 0),
            Err(reason) => {
                assert!(reason.contains("libtorch_cuda.so"), "{reason}");
                eprintln!("skipped: {reason}");
            }
        }
    }
}
