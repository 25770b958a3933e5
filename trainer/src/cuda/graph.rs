//! CUDA graphs: what libtorch and this crate's kernels queue on a GPU, recorded once and then queued
//! again by one call. Written against libtorch 2.11; not run on a GPU so far.
//!
//! libtorch's `at::cuda::CUDAGraph` does the recording, because its allocator must know of it: memory
//! that recorded work takes and gives back comes from a pool of its own, in which nobody else gets
//! memory between two replays. libtorch's C interface lacks the class; its methods are called by
//! their C++ names in the library that is loaded already. Of the Itanium C++ ABI this takes:
//!
//! - `CUDAGraph(bool)`, `~CUDAGraph()` and the methods are functions of the object's address and
//!   their arguments. The constructor of libtorch 2.11 writes 98 bytes; [`OBJECT_BYTES`] are there.
//!   The object does not move: the allocator keeps its address while it records.
//! - `std::pair<unsigned long long, unsigned long long>` (a pool's name) and `c10::cuda::CUDAStream`
//!   (a device of two bytes and a number) can be copied bit by bit and have 16 bytes, so they come
//!   and go in registers, as C structures of the same fields do.
//! - An error is thrown. What was begun by then cannot be undone from here, so the process ends.
#![allow(unsafe_code, reason = "libtorch's graphs are called by their C++ names")]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use tch::Cuda;

use super::attention::find;
use super::launch::{context, refused};
use super::{CudaError, Fused};

/// Room for a `CUDAGraph`: ten times what it takes.
const OBJECT_BYTES: usize = 1024;

/// `cudaStreamCaptureModeThreadLocal`: other threads may allocate and copy meanwhile.
const THREAD_LOCAL: c_int = 1;

/// `c10::cuda::CUDAStream`: a `c10::Stream`, that is a `c10::Device` and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct TorchStream {
    device_type: i8,
    device_index: i8,
    id: i64,
}

/// `at::cuda::MempoolId_t`: `std::pair<unsigned long long, unsigned long long>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct PoolId {
    first: u64,
    second: u64,
}

impl PoolId {
    /// A new pool.
    const NEW: Self = Self { first: 0, second: 0 };
}

type Construct = unsafe extern "C-unwind" fn(*mut c_void, bool);
type Method = unsafe extern "C-unwind" fn(*mut c_void);
type Begin = unsafe extern "C-unwind" fn(*mut c_void, PoolId, c_int);
type Pool = unsafe extern "C-unwind" fn(*mut c_void) -> PoolId;
type CurrentStream = unsafe extern "C-unwind" fn(i8) -> TorchStream;
type ExternalStream = unsafe extern "C-unwind" fn(*mut c_void, i8) -> TorchStream;
type SetStream = unsafe extern "C-unwind" fn(TorchStream);

/// libtorch's functions by their C++ names.
#[derive(Clone, Copy)]
struct Functions {
    construct: Construct,
    destroy: Method,
    begin: Begin,
    end: Method,
    replay: Method,
    pool: Pool,
    current_stream: CurrentStream,
    external_stream: ExternalStream,
    set_stream: SetStream,
}

impl Functions {
    fn find() -> Result<Self, CudaError> {
        /// A function of this type by its C++ name.
        macro_rules! function {
            ($kind:ty, $name:literal) => {{
                let found = find($name)?;
                // SAFETY: the name says the types of the arguments (Itanium C++ ABI), which are
                // those of this type; results are as libtorch 2.11 declares them.
                unsafe { std::mem::transmute::<*mut c_void, $kind>(found) }
            }};
        }
        Ok(Self {
            construct: function!(Construct, c"_ZN2at4cuda9CUDAGraphC1Eb"),
            destroy: function!(Method, c"_ZN2at4cuda9CUDAGraphD1Ev"),
            begin: function!(
                Begin,
                c"_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode"
            ),
            end: function!(Method, c"_ZN2at4cuda9CUDAGraph11capture_endEv"),
            replay: function!(Method, c"_ZN2at4cuda9CUDAGraph6replayEv"),
            pool: function!(Pool, c"_ZN2at4cuda9CUDAGraph4poolEv"),
            current_stream: function!(CurrentStream, c"_ZN3c104cuda20getCurrentCUDAStreamEa"),
            external_stream: function!(
                ExternalStream,
                c"_ZN3c104cuda21getStreamFromExternalEP11CUstream_sta"
            ),
            set_stream: function!(
                SetStream,
                c"_ZN3c104cuda20setCurrentCUDAStreamENS0_10CUDAStreamE"
            ),
        })
    }
}

/// Records on one GPU. All its graphs share a pool of memory, and must be replayed one after the
/// other on one stream.
pub struct Recorder {
    functions: Functions,
    ordinal: usize,
    /// What is recorded is queued here: the default stream cannot be recorded.
    stream: Arc<CudaStream>,
    /// Keeps the pool as long as graphs may join it.
    first: Option<Rc<Object>>,
}

/// Recorded work.
pub struct Graph(Rc<Object>);

impl Recorder {
    /// For GPU number `ordinal`, on which libtorch computes.
    ///
    /// # Errors
    /// [`CudaError::Switch`] if this libtorch lacks a function, [`CudaError::Library`] or
    /// [`CudaError::Refused`] if there is no driver or it gives no stream.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        let context: Arc<CudaContext> = context(ordinal)?;
        let stream = context.new_stream().map_err(refused("cuStreamCreate"))?;
        Ok(Self { functions: Functions::find()?, ordinal, stream, first: None })
    }

    /// Records what `work` queues, on this thread, without doing it: nothing is computed before
    /// [`Graph::replay`]. Whatever memory `work` reads and writes but does not take itself must stay
    /// where it is as long as the graph is replayed. `work` must not wait for the GPU.
    ///
    /// # Panics
    /// If `work` does. An error of libtorch in the recording itself ends the process.
    pub fn record(&mut self, fused: Option<&Fused>, work: &mut dyn FnMut()) -> Graph {
        // What was queued before may still use memory that is about to be handed out again.
        Cuda::synchronize(self.ordinal as i64);
        let pool = self.first.as_ref().map_or(PoolId::NEW, |graph| graph.pool());
        let object = Rc::new(Object::new(self.functions));
        {
            let _queue = Queue::switch(self, fused);
            object.begin(pool);
            work();
            object.end();
        }
        if self.first.is_none() {
            self.first = Some(Rc::clone(&object));
        }
        Graph(object)
    }
}

impl Graph {
    /// Queues the recorded work once more, behind what libtorch was asked before. Does not wait.
    pub fn replay(&self) {
        self.0.replay();
    }
}

/// As long as it lives, libtorch and this crate's kernels queue on the recorder's stream.
struct Queue<'a> {
    functions: Functions,
    before: TorchStream,
    fused: Option<&'a Fused>,
}

impl<'a> Queue<'a> {
    fn switch(recorder: &Recorder, fused: Option<&'a Fused>) -> Self {
        let functions = recorder.functions;
        let (ordinal, stream) = (recorder.ordinal as i8, recorder.stream.cu_stream());
        // SAFETY: the stream is one of this GPU's context and outlives the graphs' recording; the
        // functions read and set a variable of this thread.
        let before = ends_at_errors(|| unsafe {
            let before = (functions.current_stream)(ordinal);
            (functions.set_stream)((functions.external_stream)(stream.cast(), ordinal));
            before
        });
        if let Some(fused) = fused {
            fused.queue_on(Some(Arc::clone(&recorder.stream)));
        }
        Self { functions, before, fused }
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        let (functions, before) = (self.functions, self.before);
        // SAFETY: as above; the stream is the one that was current before.
        ends_at_errors(|| unsafe { (functions.set_stream)(before) });
        if let Some(fused) = self.fused {
            fused.queue_on(None);
        }
    }
}

/// An `at::cuda::CUDAGraph`, where it was made.
struct Object {
    functions: Functions,
    memory: NonNull<Memory>,
    /// Set while it records: then it is better left than destroyed.
    is_open: Cell<bool>,
}

/// As `malloc` would align it.
#[repr(C, align(16))]
struct Memory([MaybeUninit<u8>; OBJECT_BYTES]);

impl Object {
    fn new(functions: Functions) -> Self {
        let memory = Box::new(Memory([MaybeUninit::uninit(); OBJECT_BYTES]));
        let memory = NonNull::from(Box::leak(memory));
        // SAFETY: the memory is aligned and larger than the object, and nobody else's.
        ends_at_errors(|| unsafe { (functions.construct)(memory.as_ptr().cast(), false) });
        Self { functions, memory, is_open: Cell::new(false) }
    }

    fn address(&self) -> *mut c_void {
        self.memory.as_ptr().cast()
    }

    fn begin(&self, pool: PoolId) {
        self.is_open.set(true);
        // SAFETY: the object was constructed, and the current stream is not the default one.
        ends_at_errors(|| unsafe { (self.functions.begin)(self.address(), pool, THREAD_LOCAL) });
    }

    fn end(&self) {
        // SAFETY: the object records, on the current stream.
        ends_at_errors(|| unsafe { (self.functions.end)(self.address()) });
        self.is_open.set(false);
    }

    fn replay(&self) {
        // SAFETY: the object has recorded; who recorded keeps the memory that the work uses.
        ends_at_errors(|| unsafe { (self.functions.replay)(self.address()) });
    }

    fn pool(&self) -> PoolId {
        // SAFETY: the object has recorded.
        ends_at_errors(|| unsafe { (self.functions.pool)(self.address()) })
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if self.is_open.get() {
            // The recorded work panicked; libtorch's allocator still knows the object, whose memory
            // is never given back.
            return;
        }
        // SAFETY: the object was constructed and is not used again; the memory is the box that was
        // leaked for it. The driver keeps what replays under way need of it.
        ends_at_errors(|| unsafe {
            (self.functions.destroy)(self.address());
            drop(Box::from_raw(self.memory.as_ptr()));
        });
    }
}

/// Calls libtorch where an exception cannot be made good.
fn ends_at_errors<T>(call: impl FnOnce() -> T) -> T {
    /// Dropped only when something is thrown through it.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            // Its text is lost here: a C++ exception passes through Rust unseen.
            panic!("libtorch failed to record or replay a CUDA graph; set gpu.graphs = false");
        }
    }
    let end = End;
    let result = call();
    std::mem::forget(end);
    result
}

impl fmt::Debug for Recorder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Recorder of GPU {}", self.ordinal)
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Graph")
    }
}

#[cfg(test)]
mod tests {
    //! What can be known of libtorch's C++ functions without a GPU.

    use std::mem::{align_of, offset_of, size_of};

    use super::*;

    #[test]
    fn structures_are_laid_out_as_in_cpp() {
        assert_eq!((size_of::<TorchStream>(), size_of::<PoolId>()), (16, 16));
        assert_eq!(offset_of!(TorchStream, device_index), 1);
        assert_eq!(offset_of!(TorchStream, id), 8);
        assert_eq!((size_of::<Memory>(), align_of::<Memory>()), (OBJECT_BYTES, 16));
    }

    #[test]
    fn without_the_library_the_missing_function_is_named() {
        // Another test may have opened the library, where there is one.
        match Functions::find() {
            Ok(_) => {}
            Err(error) => assert!(error.to_string().contains("CUDAGraph"), "{error}"),
        }
    }

    #[test]
    fn what_throws_nothing_gives_its_result() {
        assert_eq!(ends_at_errors(|| 7), 7);
    }
}
