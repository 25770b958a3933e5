//! The element-wise work of layers as CUDA kernels, each one pass over memory: norms, rotary
//! embedding, activations, cross-entropy and the gradient of looked-up rows. NVRTC compiles them
//! for this process.
//!
//! The formulas are those of [`crate::kernel`]; sums are in an order of the launch's shape alone,
//! and no addition is atomic, so that the same step gives the same bits again. The `.cu` files are
//! compiled for the host in tests, where [`Fused`] runs them on CPU tensors.

mod activation;
pub mod attention;
mod cross_entropy;
mod embedding;
mod error;
mod graph;
mod launch;
mod memory;
mod norm;
mod rotary;
mod source;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::CudaStream;
use tch::{Kind, Tensor};

pub use error::CudaError;
pub use graph::{Graph, Recorder};
use launch::Launch;
pub use launch::{Kernels, compute_capability};
pub use memory::DeviceMemory;
pub use norm::{NormGradients, NormInput};
use source::Kernel;

/// Elements that a thread takes at once: rows are whole packs.
const PACK: i64 = 8;
/// The most threads of a block.
const MOST_THREADS: i64 = 256;
/// Blocks beyond these go round.
const MOST_BLOCKS: i64 = 1 << 16;

/// What a kernel reads and writes, as `Call` in `element.cu`; each kernel there says what is where.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Call {
    pointer: [u64; 8],
    size: [i64; 6],
    number: [f32; 2],
}

impl Call {
    fn new<const P: usize, const S: usize>(pointers: [u64; P], sizes: [i64; S]) -> Self {
        let mut call = Self { pointer: [0; 8], size: [0; 6], number: [0.0; 2] };
        call.pointer[..P].copy_from_slice(&pointers);
        call.size[..S].copy_from_slice(&sizes);
        call
    }

    fn with_number(mut self, number: f32) -> Self {
        self.number[0] = number;
        self
    }
}

/// How many blocks of how many threads.
#[derive(Clone, Copy, Debug)]
struct Grid {
    blocks: u32,
    threads: u32,
}

impl Grid {
    /// A block for each of `rows`, with a thread for each pack of a row.
    fn rows(rows: i64, columns: i64) -> Self {
        let threads = (count_of(columns, PACK) as u64).next_power_of_two() as i64;
        Self {
            blocks: rows.min(MOST_BLOCKS) as u32,
            threads: threads.clamp(32, MOST_THREADS) as u32,
        }
    }

    /// A thread for each of `packs`.
    fn packs(packs: i64) -> Self {
        let blocks = count_of(packs, MOST_THREADS).min(MOST_BLOCKS);
        Self { blocks: blocks as u32, threads: MOST_THREADS as u32 }
    }
}

/// The dtype of activations and weights that a kernel is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Bf16,
    F32,
}

impl Form {
    fn kind(self) -> Kind {
        match self {
            Self::Bf16 => Kind::BFloat16,
            Self::F32 => Kind::Float,
        }
    }
}

/// The kernels for one compute dtype. Its methods are the layers' operations; they panic where
/// tensors do not fit together, and where the GPU refuses a launch, as libtorch's operators do.
pub struct Fused {
    launcher: Box<dyn Launch>,
    form: Form,
}

impl Fused {
    /// The kernels of a GPU, for activations of `kind`; `None` where there are none for it (f64).
    pub fn new(kernels: Kernels, kind: Kind) -> Option<Self> {
        Some(Self { launcher: Box::new(kernels), form: form_of(kind)? })
    }

    /// Whether rows of so many elements are whole packs.
    pub(crate) fn takes(&self, columns: i64) -> bool {
        columns > 0 && columns % PACK == 0
    }

    /// Queues kernels from here on on another stream, `None` for libtorch's default one.
    fn queue_on(&self, stream: Option<Arc<CudaStream>>) {
        self.launcher.queue_on(stream);
    }

    /// Runs a kernel on addresses that [`Fused::activations`] and its like gave.
    fn run(&self, kernel: Kernel, grid: Grid, call: &Call) {
        if grid.blocks == 0 {
            return;
        }
        launch::on_checked_tensors(&*self.launcher, (kernel, self.form), grid, call);
    }

    /// The address of a tensor of the compute dtype with `numel` elements.
    fn activations(&self, tensor: &Tensor, numel: i64) -> u64 {
        address(tensor, self.form.kind(), numel)
    }
}

impl std::fmt::Debug for Fused {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Fused {{ {:?} }}", self.form)
    }
}

/// How many parts of `size` cover `whole`.
fn count_of(whole: i64, size: i64) -> i64 {
    (whole + size - 1) / size
}

fn form_of(kind: Kind) -> Option<Form> {
    match kind {
        Kind::BFloat16 => Some(Form::Bf16),
        Kind::Float => Some(Form::F32),
        _ => None,
    }
}

/// The address of a contiguous tensor, of this dtype and number of elements.
///
/// # Panics
/// If it is another: a mistake of the caller.
fn address(tensor: &Tensor, kind: Kind, numel: i64) -> u64 {
    assert_eq!(tensor.kind(), kind, "a kernel was given a tensor of another dtype");
    assert_eq!(tensor.numel() as i64, numel, "a kernel was given a tensor of another size");
    assert!(tensor.is_contiguous(), "kernels need contiguous tensors");
    tensor.data_ptr() as u64
}
