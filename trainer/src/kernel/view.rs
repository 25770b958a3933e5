//! Rust slices over the memory of CPU tensors, for the kernels of this folder.
#![allow(unsafe_code, reason = "a tensor's memory is reached through a raw pointer")]

use tch::{Device, Kind, Tensor};

/// A Rust type and the dtype whose elements it is. (tch has such a trait too, but there bf16 says
/// that it is f16.)
pub(crate) trait Element: sealed::Sealed + Copy {
    /// The dtype.
    const KIND: Kind;
}

mod sealed {
    /// Only this file says which type is which dtype: memory is read on its word.
    pub(crate) trait Sealed {}
}

macro_rules! element {
    ($type:ty, $kind:ident) => {
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const KIND: Kind = Kind::$kind;
        }
    };
}
element!(half::bf16, BFloat16);
element!(f32, Float);
element!(f64, Double);
element!(i64, Int64);
element!(u8, Uint8);

/// The elements of a contiguous CPU tensor.
///
/// # Panics
/// If the tensor is not contiguous, not on the CPU or of another dtype: a mistake of the caller.
pub(crate) fn slice<T: Element>(tensor: &Tensor) -> &[T] {
    check::<T>(tensor);
    if tensor.numel() == 0 {
        return &[];
    }
    // SAFETY: dtype, device and contiguity are checked above; libtorch aligns its storage; the
    // borrow keeps the tensor, and so its storage, alive. Nothing writes the tensor meanwhile:
    // kernels run one after another and get written tensors through `slice_mut` only.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr() as *const T, tensor.numel()) }
}

/// The elements of a contiguous CPU tensor, to be written.
///
/// The tensor is borrowed mutably, but another handle may share its storage (a view into a flat
/// buffer): a kernel must not be given two views that overlap.
///
/// # Panics
/// As [`slice`].
pub(crate) fn slice_mut<T: Element>(tensor: &mut Tensor) -> &mut [T] {
    check::<T>(tensor);
    if tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as in `slice`; callers pass each region of a flat buffer at most once per kernel.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr() as *mut T, tensor.numel()) }
}

fn check<T: Element>(tensor: &Tensor) {
    assert_eq!(tensor.device(), Device::Cpu, "kernels run on CPU tensors");
    assert_eq!(tensor.kind(), T::KIND, "a kernel was given a tensor of another dtype");
    assert!(tensor.is_contiguous(), "kernels need contiguous tensors");
}

/// A contiguous tensor in host memory, as its bytes.
#[derive(Debug)]
pub(crate) struct HostTensor(Tensor);

impl HostTensor {
    /// `tensor` itself, or a copy if it is on another device.
    pub(crate) fn new(tensor: Tensor) -> Self {
        Self(tensor.to_device(Device::Cpu))
    }
}

impl AsRef<[u8]> for HostTensor {
    fn as_ref(&self) -> &[u8] {
        bytes(&self.0)
    }
}

/// The bytes of a contiguous CPU tensor of any dtype, row-major in the machine's byte order.
///
/// # Panics
/// If the tensor is not contiguous or not on the CPU: a mistake of the caller.
pub(crate) fn bytes(tensor: &Tensor) -> &[u8] {
    assert_eq!(tensor.device(), Device::Cpu, "bytes are read from CPU tensors");
    assert!(tensor.is_contiguous(), "bytes are read from contiguous tensors");
    let len = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if len == 0 {
        return &[];
    }
    // SAFETY: a contiguous tensor's storage holds `len` initialized bytes from its data pointer
    // on; any bit pattern is a valid u8; the borrow keeps the storage alive.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr() as *const u8, len) }
}
