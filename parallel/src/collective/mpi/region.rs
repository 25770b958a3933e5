//! Memory that MPI reads and writes while Rust looks away: a pointer and a length, cut into
//! pieces by checked arithmetic.
#![allow(unsafe_code, reason = "tensor memory is viewed as raw bytes and typed slices")]

use std::{ops::Range, slice};

use tch::{Device, Tensor};

use super::element::Number;

/// Bytes of a tensor on the host, or of scratch memory.
///
/// Whoever makes one promises that the memory stays where it is as long as the region and all
/// regions cut from it are in use, and that nobody but MPI and this thread touches it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Region {
    start: *mut u8,
    bytes: usize,
}

impl Region {
    /// The elements of a contiguous host tensor.
    ///
    /// # Safety
    /// The storage must outlive all use of the region, and until then nobody else may touch it.
    pub(super) unsafe fn of_tensor(tensor: &Tensor) -> Self {
        assert!(tensor.is_contiguous() && tensor.device() == Device::Cpu, "staged and checked");
        let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
        Self { start: tensor.data_ptr().cast(), bytes }
    }

    /// Scratch memory, whose `u64`s make it aligned for every element.
    ///
    /// # Safety
    /// The vector must neither be moved out of, resized nor dropped while the region is in use.
    pub(super) unsafe fn of_scratch(scratch: &mut [u64]) -> Self {
        Self { start: scratch.as_mut_ptr().cast(), bytes: size_of_val(scratch) }
    }

    pub(super) fn bytes(self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(self) -> bool {
        self.bytes == 0
    }

    pub(super) fn as_ptr(self) -> *mut u8 {
        self.start
    }

    /// The bytes in `range`.
    pub(super) fn cut(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {}", self.bytes);
        // SAFETY: the offset is within the memory that the region spans, by the check above.
        let start = unsafe { self.start.add(range.start) };
        Self { start, bytes: range.len() }
    }

    /// Copies all bytes of `from`, which has as many; the same region twice is fine.
    pub(super) fn copy_from(self, from: Self) {
        assert_eq!(self.bytes, from.bytes, "regions of one length");
        if self.bytes > 0 {
            // SAFETY: both span `bytes` valid bytes, and `copy` allows them to overlap.
            unsafe { std::ptr::copy(from.start, self.start, self.bytes) };
        }
    }

    /// The region as elements to read.
    ///
    /// # Safety
    /// Nothing may write to the memory while the slice lives.
    pub(super) unsafe fn elements<'a, T: Number>(self) -> &'a [T] {
        if self.is_empty() {
            return &[];
        }
        self.check_typed::<T>();
        // SAFETY: aligned and of whole elements by the check; every bit pattern is a `T`; the
        // caller keeps writers away and the region's maker keeps the memory.
        unsafe { slice::from_raw_parts(self.start.cast(), self.bytes / size_of::<T>()) }
    }

    /// The region as elements to change.
    ///
    /// # Safety
    /// Nothing else may read or write the memory while the slice lives.
    pub(super) unsafe fn elements_mut<'a, T: Number>(self) -> &'a mut [T] {
        if self.is_empty() {
            return &mut [];
        }
        self.check_typed::<T>();
        // SAFETY: as for `elements`, and the caller keeps everyone else away.
        unsafe { slice::from_raw_parts_mut(self.start.cast(), self.bytes / size_of::<T>()) }
    }

    fn check_typed<T: Number>(self) {
        assert!(
            self.start.addr().is_multiple_of(align_of::<T>())
                && self.bytes.is_multiple_of(size_of::<T>()),
            "tensor memory is aligned and whole"
        );
    }
}
