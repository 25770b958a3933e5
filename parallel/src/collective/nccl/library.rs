//! Finds CUDA's driver, NVRTC and NCCL when they are first needed, so that nothing of CUDA has to
//! be there to build, or to run without a GPU.
//!
//! `cudarc` panics where a library is missing, so each is opened here first. NCCL's functions are
//! called through a table of our own: `cudarc` looks for `libnccl.so`, while wheels, distributions
//! and libtorch bring `libnccl.so.2`, which libtorch has usually loaded already.
#![allow(unsafe_code, reason = "shared libraries are opened by name")]

use std::{
    collections::BTreeSet,
    ffi::{c_char, c_int, c_void},
    fs,
    path::{Path, PathBuf},
};

use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use libloading::Library;

use crate::error::{Error, GpuError, Result};

/// The oldest NCCL that has `ncclCommSplit`.
const OLDEST_NCCL: Version = Version(21_800);

/// Lists the files that are mapped into this process.
const MAPPED_FILES: &str = "/proc/self/maps";

/// Where wheels put CUDA's libraries, seen from the folder of libtorch's.
const BESIDE_LIBTORCH: [&str; 3] =
    ["../../nvidia/nccl/lib", "../../nvidia/cu13/lib", "../../nvidia/cuda_nvrtc/lib"];

/// What NVRTC opens by name when it compiles, which fails in a wheel unless it is loaded already.
const NVRTC_BUILTINS: &str = "libnvrtc-builtins.so";

/// A library by the names it goes by.
struct Wanted {
    library: &'static str,
    names: &'static [&'static str],
    remedy: &'static str,
}

const DRIVER: Wanted = Wanted {
    library: "CUDA's driver",
    // The names that `cudarc` will look for.
    names: &["libcuda.so", "libcuda.so.1"],
    remedy: "install NVIDIA's driver, release 580 or newer, or train on the CPU",
};

/// The newest of the driver's functions that are called: older drivers lack it.
const NEWEST_DRIVER_FUNCTION: &str = "cuEventElapsedTime_v2";

const NVRTC: Wanted = Wanted {
    library: "CUDA's run-time compiler",
    names: &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
    remedy: "install nvidia-cuda-nvrtc beside libtorch, or set backend = \"mpi\"",
};

const NCCL: Wanted = Wanted {
    library: "NCCL",
    names: &["libnccl.so.2", "libnccl.so"],
    remedy: "install nvidia-nccl-cu13 beside libtorch, or libnccl2, or set backend = \"mpi\"",
};

/// Where libraries are looked for.
#[derive(Debug)]
pub(super) struct Search {
    /// Whether the loader's own search counts: what is loaded, the library path, the system's.
    by_loader: bool,
    folders: Vec<PathBuf>,
}

impl Search {
    /// The loader's search, then the folders beside the libtorch of this process.
    pub(super) fn of_process() -> Self {
        Self { by_loader: true, folders: beside_libtorch(&mapped_files()) }
    }

    /// One folder and nothing else.
    #[cfg(test)]
    pub(super) fn only(folder: PathBuf) -> Self {
        Self { by_loader: false, folders: vec![folder] }
    }

    /// Checks that `cudarc` will find the driver and NVRTC, and opens NCCL.
    ///
    /// # Errors
    /// [`GpuError::Library`] for the first that is missing; [`GpuError::TooOld`].
    pub(super) fn open(&self) -> Result<Nccl> {
        let driver = self.find(&DRIVER)?;
        self.function::<unsafe extern "C" fn()>(&DRIVER, &driver, NEWEST_DRIVER_FUNCTION)?;
        let nvrtc = self.find(&NVRTC)?;
        for folder in folders_of("libnvrtc.so", &mapped_files()) {
            open_builtins(&folder);
        }
        // They stay loaded, so `cudarc` finds them by name wherever they were found.
        std::mem::forget((driver, nvrtc));
        self.nccl()
    }

    fn nccl(&self) -> Result<Nccl> {
        let nccl = Nccl::link(self, self.find(&NCCL)?)?;
        let found = nccl.version()?;
        if found < OLDEST_NCCL {
            let (found, needed) = (found.to_string(), OLDEST_NCCL.to_string());
            return Err(GpuError::TooOld { found, needed }.into());
        }
        Ok(nccl)
    }

    fn find(&self, wanted: &Wanted) -> Result<Library> {
        let by_loader = wanted.names.iter().filter(|_| self.by_loader).map(PathBuf::from);
        let in_folders =
            self.folders.iter().flat_map(|folder| wanted.names.iter().map(|n| folder.join(n)));
        let mut reason = "there is no such file".to_owned();
        for path in by_loader.chain(in_folders.filter(|path| path.exists())) {
            // SAFETY: these are NVIDIA's libraries, whose initializers have no preconditions.
            match unsafe { Library::new(&path) } {
                Ok(library) => return Ok(library),
                Err(error) => reason = with_sources(&error),
            }
        }
        Err(self.missing(wanted, reason))
    }

    /// A function of a library, as a function pointer of type `F`.
    fn function<F: Copy>(&self, wanted: &Wanted, library: &Library, name: &str) -> Result<F> {
        // SAFETY: the caller names the C type that the library's header gives the function.
        let found = unsafe { library.get::<F>(name) };
        found.map(|function| *function).map_err(|error| {
            let reason = format!("it has no {name} ({})", with_sources(&error));
            self.missing(wanted, reason)
        })
    }

    fn missing(&self, wanted: &Wanted, reason: String) -> Error {
        let loader = self.by_loader.then(|| "the loader's path".to_owned());
        let folders = self.folders.iter().map(|folder| folder.display().to_string());
        let searched: Vec<String> = loader.into_iter().chain(folders).collect();
        let (names, searched) = (wanted.names.join(", "), searched.join(", "));
        let Wanted { library, remedy, .. } = *wanted;
        GpuError::Library { library, reason, names, searched, remedy }.into()
    }
}

/// The error with its causes: `libloading` keeps the loader's own text in the source.
fn with_sources(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// What the kernel says about the files in this process's memory.
fn mapped_files() -> String {
    fs::read_to_string(MAPPED_FILES).unwrap_or_default()
}

/// The existing ones of the folders where wheels put CUDA's libraries, by the libtorch among
/// `mapped` files.
fn beside_libtorch(mapped: &str) -> Vec<PathBuf> {
    let libtorch = folders_of("libtorch", mapped);
    let beside = libtorch.iter().flat_map(|lib| BESIDE_LIBTORCH.map(|folder| lib.join(folder)));
    beside.filter_map(|folder| folder.canonicalize().ok()).collect()
}

/// The folders of `mapped` files whose names begin with `name`.
fn folders_of(name: &str, mapped: &str) -> BTreeSet<PathBuf> {
    let paths = mapped.lines().filter_map(|line| line.find('/').map(|i| Path::new(&line[i..])));
    let named = |path: &&Path| {
        path.file_name().is_some_and(|found| found.to_string_lossy().starts_with(name))
    };
    paths.filter(named).filter_map(Path::parent).map(PathBuf::from).collect()
}

/// Loads what NVRTC will look for. If that fails, NVRTC says so when it compiles.
fn open_builtins(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(NVRTC_BUILTINS) {
            // SAFETY: it is NVIDIA's library of data for its compiler, without preconditions.
            std::mem::forget(unsafe { Library::new(entry.path()) });
        }
    }
}

/// A version as `ncclGetVersion` codes it: 2.28.9 is 22809.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) i32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0 / 10_000, self.0 / 100 % 100, self.0 % 100)
    }
}

/// `ncclResult_t`, as a number: a library newer than our list of its values may return others.
pub(super) type Code = c_int;

/// NCCL's functions, as `nccl.h` declares them.
#[derive(Debug)]
pub(super) struct Nccl {
    get_version: unsafe extern "C" fn(*mut c_int) -> Code,
    pub(super) get_error_string: unsafe extern "C" fn(Code) -> *const c_char,
    pub(super) get_last_error: unsafe extern "C" fn(ncclComm_t) -> *const c_char,
    pub(super) get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> Code,
    pub(super) comm_init_rank:
        unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> Code,
    pub(super) comm_split:
        unsafe extern "C" fn(ncclComm_t, c_int, c_int, *mut ncclComm_t, *mut c_void) -> Code,
    pub(super) comm_destroy: unsafe extern "C" fn(ncclComm_t) -> Code,
    pub(super) comm_abort: unsafe extern "C" fn(ncclComm_t) -> Code,
    pub(super) comm_get_async_error: unsafe extern "C" fn(ncclComm_t, *mut Code) -> Code,
    pub(super) group_start: unsafe extern "C" fn() -> Code,
    pub(super) group_end: unsafe extern "C" fn() -> Code,
    pub(super) all_reduce: Reduce,
    pub(super) reduce_scatter: Reduce,
    pub(super) all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclComm_t,
        cudaStream_t,
    ) -> Code,
    pub(super) broadcast: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        c_int,
        ncclComm_t,
        cudaStream_t,
    ) -> Code,
    pub(super) send: unsafe extern "C" fn(
        *const c_void,
        usize,
        ncclDataType_t,
        c_int,
        ncclComm_t,
        cudaStream_t,
    ) -> Code,
    pub(super) receive: unsafe extern "C" fn(
        *mut c_void,
        usize,
        ncclDataType_t,
        c_int,
        ncclComm_t,
        cudaStream_t,
    ) -> Code,
    /// Not read: the functions above lie in it.
    _library: Library,
}

/// `ncclAllReduce` and `ncclReduceScatter`.
pub(super) type Reduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    ncclDataType_t,
    ncclRedOp_t,
    ncclComm_t,
    cudaStream_t,
) -> Code;

impl Nccl {
    /// Looks up every function, so that none is found missing in the middle of a run.
    fn link(search: &Search, library: Library) -> Result<Self> {
        Ok(Self {
            get_version: search.function(&NCCL, &library, "ncclGetVersion")?,
            get_error_string: search.function(&NCCL, &library, "ncclGetErrorString")?,
            get_last_error: search.function(&NCCL, &library, "ncclGetLastError")?,
            get_unique_id: search.function(&NCCL, &library, "ncclGetUniqueId")?,
            comm_init_rank: search.function(&NCCL, &library, "ncclCommInitRank")?,
            comm_split: search.function(&NCCL, &library, "ncclCommSplit")?,
            comm_destroy: search.function(&NCCL, &library, "ncclCommDestroy")?,
            comm_abort: search.function(&NCCL, &library, "ncclCommAbort")?,
            comm_get_async_error: search.function(&NCCL, &library, "ncclCommGetAsyncError")?,
            group_start: search.function(&NCCL, &library, "ncclGroupStart")?,
            group_end: search.function(&NCCL, &library, "ncclGroupEnd")?,
            all_reduce: search.function(&NCCL, &library, "ncclAllReduce")?,
            reduce_scatter: search.function(&NCCL, &library, "ncclReduceScatter")?,
            all_gather: search.function(&NCCL, &library, "ncclAllGather")?,
            broadcast: search.function(&NCCL, &library, "ncclBroadcast")?,
            send: search.function(&NCCL, &library, "ncclSend")?,
            receive: search.function(&NCCL, &library, "ncclRecv")?,
            _library: library,
        })
    }

    pub(super) fn version(&self) -> Result<Version> {
        let mut version = 0;
        // SAFETY: the function writes one int.
        let code = unsafe { (self.get_version)(&mut version) };
        self.check("ncclGetVersion", code)?;
        Ok(Version(version))
    }

    /// Turns a code into an error with NCCL's texts for it.
    pub(super) fn check(&self, function: &'static str, code: Code) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: both functions return C strings that stay valid until the next NCCL call of
        // this thread, or null; the last error may be asked for without a communicator.
        let texts = unsafe {
            [(self.get_error_string)(code), (self.get_last_error)(std::ptr::null_mut())]
                .map(|text| text_at(text))
        };
        let message = texts.into_iter().flatten().collect::<Vec<_>>().join(": ");
        Err(Error::Nccl { function, code, message })
    }
}

/// The text that a C function returned, unless it is null or empty.
///
/// # Safety
/// `text` must be null or a C string.
unsafe fn text_at(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, so it is a C string by the promise of the caller.
    let text = unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests;
