//! Device memory as NCCL takes it: an address, a number of elements, their dtype.

use std::ffi::c_void;

use cudarc::nccl::sys::{ncclDataType_t, ncclRedOp_t};
use tch::Tensor;

use crate::collective::{Dtype, Reduction};

/// Elements in device memory.
///
/// Whoever makes one promises that the memory stays where it is until the device has done what
/// was queued with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    address: usize,
    pub(super) count: usize,
    pub(super) dtype: Dtype,
}

impl Span {
    /// The elements of a contiguous tensor of `dtype`.
    pub(super) fn of_tensor(tensor: &Tensor, dtype: Dtype) -> Self {
        assert!(tensor.is_contiguous(), "checked when the call was made");
        assert_eq!(tensor.kind().elt_size_in_bytes(), dtype.size_bytes(), "{dtype}");
        Self { address: tensor.data_ptr().addr(), count: tensor.numel(), dtype }
    }

    pub(super) fn bytes(self) -> usize {
        self.count * self.dtype.size_bytes()
    }

    /// The address as NCCL takes it. It is only a number to the host.
    pub(super) fn as_ptr(self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.address)
    }

    /// The address as CUDA's driver takes it.
    pub(super) fn device_address(self) -> u64 {
        self.address as u64
    }

    /// `num_parts` equal parts.
    pub(super) fn parts(self, num_parts: usize) -> Vec<Self> {
        assert!(self.count.is_multiple_of(num_parts), "checked when the call was made");
        let count = self.count / num_parts;
        let address = |part: usize| self.address + part * count * self.dtype.size_bytes();
        (0..num_parts).map(|part| Self { address: address(part), count, ..self }).collect()
    }

    /// A place for each peer's part in scratch memory, by rank; this rank's own is empty.
    pub(super) fn places(self, rank: usize, degree: usize) -> Vec<Self> {
        let mut places = if degree == 1 { Vec::new() } else { self.parts(degree - 1) };
        places.insert(rank, Self { count: 0, ..self });
        places
    }
}

/// NCCL's name of a dtype.
pub(super) fn data_type(dtype: Dtype) -> ncclDataType_t {
    match dtype {
        Dtype::F32 => ncclDataType_t::ncclFloat32,
        Dtype::F64 => ncclDataType_t::ncclFloat64,
        Dtype::I32 => ncclDataType_t::ncclInt32,
        Dtype::I64 => ncclDataType_t::ncclInt64,
        Dtype::Bf16 => ncclDataType_t::ncclBfloat16,
        Dtype::U8 => ncclDataType_t::ncclUint8,
    }
}

/// NCCL's name of a reduction. It has one sum, whose order it chooses itself.
pub(super) fn reduction_code(reduction: Reduction) -> ncclRedOp_t {
    match reduction {
        Reduction::Sum | Reduction::TreeSum => ncclRedOp_t::ncclSum,
        Reduction::Max => ncclRedOp_t::ncclMax,
        Reduction::Min => ncclRedOp_t::ncclMin,
    }
}

/// Whether NCCL does what [`Reduction`] promises. Its largest and smallest float of a number and
/// a NaN is the number.
pub(super) fn reduces_as_promised(reduction: Reduction, dtype: Dtype) -> bool {
    let float = matches!(dtype, Dtype::F32 | Dtype::F64);
    !(float && matches!(reduction, Reduction::Max | Reduction::Min))
}

#[cfg(test)]
mod tests;
