//! Runs a kernel's chunks on libtorch's own OpenMP threads, so that the two never compete for cores.
//!
//! A second thread pool beside libtorch's would leave twice as many threads as cores, and libtorch's
//! idle threads spin for a while after each of its operators. GNU OpenMP's `GOMP_parallel` is the
//! entry that a compiler emits for `#pragma omp parallel`; its signature is fixed by the symbol
//! version `GOMP_4.0`. Linking by the library's soname makes sure that the process holds one copy.
#![allow(
    unsafe_code,
    reason = "calls GNU OpenMP and shares disjoint parts of slices among threads"
)]

use std::any::Any;
use std::ffi::{c_uint, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(test)]
mod tests;

#[link(name = "libgomp.so.1", kind = "dylib", modifiers = "+verbatim")]
unsafe extern "C" {
    /// Calls `function(data)` once on each thread of a team of at most `num_threads`, the caller
    /// among them, and returns when all have finished.
    fn GOMP_parallel(
        function: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
        num_threads: c_uint,
        flags: c_uint,
    );
}

/// A number of threads to run chunks of work on; the threads themselves belong to OpenMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    num_threads: usize,
}

impl Pool {
    /// A pool of `num_threads` threads, the caller among them; 0 counts as 1.
    #[must_use]
    pub fn new(num_threads: usize) -> Self {
        Self { num_threads: num_threads.max(1) }
    }

    /// How many threads work at most, the caller among them.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.num_threads
    }

    /// Calls `function(chunk_index)` once for each of `0..num_chunks`, in any order.
    ///
    /// A thread claims the next chunk when it is done with its last one, so chunks need not cost
    /// the same; which thread runs a chunk is not determined, so no result may depend on it.
    /// Runs on the caller alone for one thread or one chunk. A panic in a chunk keeps the chunks not
    /// yet claimed from starting, and is resumed on the caller.
    pub fn for_each<F>(&self, num_chunks: usize, function: F)
    where
        F: Fn(usize) + Sync,
    {
        self.run(num_chunks, &|_worker, chunk| function(chunk));
    }

    /// [`Pool::for_each`] with one element of `scratch` lent to each thread at a time.
    ///
    /// What a chunk finds in its scratch is whatever the last chunk left there.
    ///
    /// # Panics
    /// If `scratch` has fewer elements than the pool has threads.
    pub fn for_each_with<S, F>(&self, scratch: &mut [S], num_chunks: usize, function: F)
    where
        S: Send,
        F: Fn(&mut S, usize) + Sync,
    {
        assert!(scratch.len() >= self.num_threads, "one scratch for each thread of the pool");
        let scratch = DisjointMut::new(scratch);
        self.run(num_chunks, &|worker, chunk| {
            // SAFETY: `run` gives no two threads of a region the same worker number, a worker runs
            // one chunk at a time, and worker < num_threads <= scratch.len().
            let mine = unsafe { scratch.slice(worker, 1) };
            function(&mut mine[0], chunk);
        });
    }

    /// Calls `function(chunk_index, chunk)` for each run of `chunk_len` elements of `items`; the last
    /// one may be shorter.
    ///
    /// # Panics
    /// If `chunk_len` is 0.
    pub fn for_each_chunk_mut<T, F>(&self, items: &mut [T], chunk_len: usize, function: F)
    where
        T: Send,
        F: Fn(usize, &mut [T]) + Sync,
    {
        assert!(chunk_len > 0, "a chunk has at least one element");
        let len = items.len();
        let items = DisjointMut::new(items);
        self.for_each(len.div_ceil(chunk_len), |chunk| {
            let start = chunk * chunk_len;
            // SAFETY: chunks of different indices do not overlap, each index is claimed once, and
            // the range ends at `len` at the latest.
            let part = unsafe { items.slice(start, chunk_len.min(len - start)) };
            function(chunk, part);
        });
    }

    /// `function(worker, chunk)`, where `worker` < `num_threads` is the running thread's own for the
    /// length of this call.
    fn run(&self, num_chunks: usize, function: &(dyn Fn(usize, usize) + Sync)) {
        if self.num_threads == 1 || num_chunks <= 1 {
            (0..num_chunks).for_each(|chunk| function(0, chunk));
            return;
        }
        let region = Region {
            function,
            num_chunks,
            next_chunk: AtomicUsize::new(0),
            next_worker: AtomicUsize::new(0),
            panic: Mutex::new(None),
        };
        let num_threads = self.num_threads.min(num_chunks);
        let num_threads = c_uint::try_from(num_threads).expect("no machine has 2^32 threads");
        // SAFETY: `run_worker` gets a pointer to a `Region` that outlives the call, because
        // GOMP_parallel returns only after the whole team has; `Region` is shared by reference
        // alone and all its fields are `Sync`; `run_worker` never unwinds. Flags 0 leave the
        // placement of threads to OpenMP.
        unsafe {
            GOMP_parallel(run_worker, (&raw const region).cast_mut().cast(), num_threads, 0);
        }
        let panic = region.panic.into_inner().expect("nothing panics while holding the lock");
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

/// What the threads of one call share.
struct Region<'a> {
    function: &'a (dyn Fn(usize, usize) + Sync),
    num_chunks: usize,
    next_chunk: AtomicUsize,
    next_worker: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Region<'_> {
    fn work(&self) {
        // Not omp_get_thread_num: inside somebody else's parallel region the numbers would be those
        // of the wrong team.
        let worker = self.next_worker.fetch_add(1, Ordering::Relaxed);
        loop {
            let chunk = self.next_chunk.fetch_add(1, Ordering::Relaxed);
            if chunk >= self.num_chunks {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(|| (self.function)(worker, chunk)));
            if let Err(payload) = result {
                // Leaves nothing to claim. Half of the range, so that the counter cannot wrap.
                self.next_chunk.store(usize::MAX / 2, Ordering::Relaxed);
                let mut first = self.panic.lock().expect("nothing panics while holding the lock");
                first.get_or_insert(payload);
                return;
            }
        }
    }
}

/// The body of one thread of the team; `data` points to the [`Region`].
unsafe extern "C" fn run_worker(data: *mut c_void) {
    // SAFETY: `Pool::run` passes a pointer to its `Region`, alive until the team has finished, and
    // nobody holds a `&mut` to it meanwhile.
    let region = unsafe { &*data.cast::<Region<'_>>() };
    region.work();
}

/// A mutable slice whose disjoint parts several chunks may hold at once.
///
/// Safe chunking ([`Pool::for_each_chunk_mut`]) covers contiguous chunks; this is for kernels whose
/// chunks write strided rows or several outputs.
pub struct DisjointMut<'a, T> {
    pointer: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, which may be sent where T may, and gives out parts only
// through `slice`, whose caller promises that no two overlap.
unsafe impl<T: Send> Send for DisjointMut<'_, T> {}
// SAFETY: as for `Send`: a shared `DisjointMut` gives each thread exclusive parts, never shared ones.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    /// Takes `items` for as long as parts of it are handed out.
    pub fn new(items: &'a mut [T]) -> Self {
        Self { pointer: items.as_mut_ptr(), len: items.len(), lifetime: PhantomData }
    }

    /// Where the elements `start..start + len` begin, for a caller who writes some of them.
    ///
    /// # Panics
    /// If the range does not lie within the slice.
    #[must_use]
    pub fn pointer(&self, start: usize, len: usize) -> *mut T {
        let fits = start.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(fits, "{start}..{start}+{len} lies within a slice of {}", self.len);
        self.pointer.wrapping_add(start)
    }

    /// The elements `start..start + len`.
    ///
    /// # Panics
    /// If the range does not lie within the slice.
    ///
    /// # Safety
    /// No other part that is still in use may overlap it.
    #[allow(clippy::mut_from_ref, reason = "exclusive by the caller's promise, as the docs say")]
    #[must_use]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: in bounds, as `pointer` checks; `new` borrowed the whole slice mutably for 'a, and
        // the caller promises that parts in use do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(start, len), len) }
    }
}
