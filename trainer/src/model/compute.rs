//! What every layer needs to run: device, dtypes, and the threads of the CPU kernels.

use std::cell::RefCell;
use std::fmt;

use tch::{Device, Kind, Tensor};

use super::fp8::Fp8;
use super::work::Work;
use crate::cuda::Fused;
use crate::kernel::attention::{Level, Workspace};
use crate::kernel::matrix::Multiplier;
use crate::kernel::pool::Pool;

/// How products of bf16 matrices are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// By this crate's kernel where it takes the operands, else as [`Products::Native`].
    Kernel,
    /// By libtorch, in the operands' dtype, with sums in f32.
    Native,
    /// Widened to f32: on processors where libtorch has no vector code for bf16 products, and
    /// would take a hundred times as long.
    Widened,
}

/// The device, the compute dtype and the thread pool of one rank.
pub struct Compute {
    /// Where tensors live.
    pub device: Device,
    /// The dtype of weights and activations: bf16, f32 or f64.
    pub kind: Kind,
    /// The threads of the CPU kernels: the same as libtorch's.
    pub(crate) pool: Pool,
    /// How bf16 matrices are multiplied.
    pub products: Products,
    /// The attention kernel's scratch memory; borrowed for the duration of a kernel call.
    pub(crate) attention: RefCell<Workspace>,
    /// Which products are of 8-bit numbers.
    pub fp8: Fp8,
    /// The kernels of the layers' element-wise work, on a GPU that has them.
    fused: Option<Fused>,
    /// Seconds of the CPU by kind of work; on a GPU those of queueing it.
    pub work: Work,
    /// The kernel of products with its memory, where this processor has it; borrowed likewise.
    pub(crate) multiplier: RefCell<Option<Multiplier>>,
}

impl Compute {
    /// Computes on `device` in `kind`; CPU kernels run on `num_threads` of libtorch's threads.
    pub fn new(device: Device, kind: Kind, num_threads: usize) -> Self {
        let pool = Pool::new(num_threads);
        let attention = RefCell::new(Workspace::new(pool, Level::detect()));
        let multiplier = Multiplier::detect(pool);
        let products = match (device, kind) {
            (Device::Cpu, Kind::BFloat16) if multiplier.is_some() => Products::Kernel,
            (Device::Cpu, Kind::BFloat16) if !multiplies_bf16() => Products::Widened,
            _ => Products::Native,
        };
        let multiplier = RefCell::new(multiplier);
        let work = Work::default();
        Self {
            device,
            kind,
            pool,
            products,
            attention,
            fp8: Fp8::Off,
            fused: None,
            work,
            multiplier,
        }
    }

    /// The same with kernels for the element-wise work, which must be those of its dtype and device.
    #[must_use]
    pub fn with_fused(mut self, fused: Option<Fused>) -> Self {
        self.fused = fused;
        self
    }

    /// The same with some products of 8-bit numbers.
    #[must_use]
    pub fn with_fp8(mut self, fp8: Fp8) -> Self {
        self.fp8 = fp8;
        self
    }

    /// The kernels that take rows of any length, if there are some.
    pub(crate) fn fused_anywhere(&self) -> Option<&Fused> {
        self.fused.as_ref()
    }

    /// The kernels for rows of so many elements, if there are some.
    pub(crate) fn fused(&self, columns: i64) -> Option<&Fused> {
        self.fused.as_ref().filter(|fused| fused.takes(columns))
    }

    /// Threads that the CPU kernels run on.
    pub fn num_threads(&self) -> usize {
        self.pool.num_threads()
    }

    /// The dtype of statistics, sums and gradients' accumulators: f32, or f64 when computing in f64.
    pub fn accumulation(&self) -> Kind {
        if self.kind == Kind::Double { Kind::Double } else { Kind::Float }
    }

    /// Whether this crate's CPU kernels apply: bf16 and f32 on the CPU. Everywhere else the same
    /// formulas run as tensor operations, which are also the kernels' reference in tests.
    pub fn has_kernels(&self) -> bool {
        self.device == Device::Cpu && self.kind != Kind::Double
    }

    /// An uninitialized tensor of the compute dtype.
    pub fn empty(&self, shape: &[i64]) -> Tensor {
        Tensor::empty(shape, (self.kind, self.device))
    }

    /// An uninitialized tensor of the accumulation dtype.
    pub fn empty_accumulator(&self, shape: &[i64]) -> Tensor {
        Tensor::empty(shape, (self.accumulation(), self.device))
    }
}

/// A tensor of the host on the device; towards a GPU through pinned memory, where there is some,
/// and without waiting for the copy: libtorch keeps pinned memory until it is done.
pub(crate) fn on_device(tensor: Tensor, device: Device) -> Tensor {
    match device {
        Device::Cuda(_) => match tensor.f_pin_memory(device) {
            Ok(pinned) => pinned.to_device_(device, tensor.kind(), true, false),
            Err(_) => tensor.to_device(device),
        },
        _ => tensor,
    }
}

/// In f32.
pub(crate) fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Float)
}

/// Whether libtorch's CPU library has vector code for bf16 products here.
fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
    }
    #[cfg(not(target_arch = "x86_64"))]
    true
}

impl fmt::Debug for Compute {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, kind, pool, products, fp8, fused, .. } = self;
        let threads = pool.num_threads();
        write!(formatter, "Compute {{ {device:?}, {kind:?}, {products:?}, fp8 {fp8:?}, ")?;
        write!(formatter, "{fused:?}, {threads} threads }}")
    }
}

/// Runs a kernel for the compute dtype: `per_element!(compute, E => expression using E)`.
///
/// Only for a [`Compute`] that has kernels.
macro_rules! per_element {
    ($compute:expr, $element:ident => $body:expr) => {
        match $compute.kind {
            tch::Kind::BFloat16 => {
                type $element = half::bf16;
                $body
            }
            tch::Kind::Float => {
                type $element = f32;
                $body
            }
            other => unreachable!("no kernels for {other:?}: Compute::has_kernels was not asked"),
        }
    };
}
pub(crate) use per_element;
