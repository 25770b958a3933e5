//! Which of libtorch's kernels its fused attention takes: by choice, or the fastest of those that
//! the GPU has for a shape.
//!
//! libtorch has switches for them that its C interface lacks; they are plain C++ functions of a
//! pointer and a flag, found by name in the library that is loaded already.
#![allow(unsafe_code, reason = "libtorch's switches are called by their C++ names")]

use std::ffi::{CStr, c_void};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind, Tensor};

use super::CudaError;

/// Times of one kernel, of which the best counts.
const TRIALS: usize = 5;
/// Passes forward and backward of one trial.
const PASSES: usize = 4;

/// A kernel for attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// `FlashAttention` 2 (Dao 2023, arXiv:2307.08691); without masks.
    Flash,
    /// That of xFormers; takes masks.
    Efficient,
    /// cuDNN's; takes masks.
    Cudnn,
    /// Products and a softmax, for any shape.
    Math,
}

impl Backend {
    /// Those that are worth measuring.
    const FUSED: [Self; 3] = [Self::Flash, Self::Efficient, Self::Cudnn];
}

/// What to measure with: q is `[B, N, S, H]`, k and v are `[B, K, S, H]`.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// `B`, sequences.
    pub batch_size: i64,
    /// `S`, positions of each.
    pub sequence_length: i64,
    /// `N`, query heads.
    pub num_heads: i64,
    /// `K`, key and value heads.
    pub num_kv_heads: i64,
    /// `H`, elements of a head.
    pub head_dim: i64,
    /// Whether a mask says what is seen, as where documents are kept apart.
    pub masked: bool,
}

/// Lets libtorch's fused attention take this kernel, for the whole process. Where it takes no mask
/// or no such shape, xFormers' or products step in; cuDNN's comes last in libtorch's order, so that
/// nothing steps in for it.
///
/// # Errors
/// [`CudaError::Switch`] if this libtorch has no such switch.
pub fn allow(backend: Backend) -> Result<(), CudaError> {
    let alone = backend == Backend::Cudnn;
    let masks = matches!(backend, Backend::Flash | Backend::Efficient);
    switch(c"_ZN2at7Context14setSDPUseFlashEb", backend == Backend::Flash)?;
    switch(c"_ZN2at7Context21setSDPUseMemEfficientEb", masks)?;
    switch(c"_ZN2at7Context14setSDPUseCuDNNEb", alone)?;
    switch(c"_ZN2at7Context13setSDPUseMathEb", !alone)
}

/// The fastest kernel for a shape, forward and backward; `None` if none of the fused ones takes it.
/// Leaves that one allowed, or [`Backend::Math`].
///
/// # Errors
/// As [`allow`].
pub fn choose_fastest(
    device: Device,
    kind: Kind,
    shape: Shape,
) -> Result<Option<Backend>, CudaError> {
    let mut best: Option<(f64, Backend)> = None;
    for backend in Backend::FUSED {
        allow(backend)?;
        // What would step in must not: it would be measured under the other's name.
        switch(c"_ZN2at7Context13setSDPUseMathEb", false)?;
        switch(c"_ZN2at7Context21setSDPUseMemEfficientEb", backend == Backend::Efficient)?;
        let seconds = (0..TRIALS).map(|_| time(device, kind, shape)).collect::<Option<Vec<f64>>>();
        let seconds = seconds.map(|all| all.into_iter().fold(f64::INFINITY, f64::min));
        if let Some(seconds) = seconds
            && best.is_none_or(|(least, _)| seconds < least)
        {
            best = Some((seconds, backend));
        }
    }
    let found = best.map(|(_, backend)| backend);
    allow(found.unwrap_or(Backend::Math))?;
    Ok(found)
}

/// Seconds of some passes, `None` if libtorch has no kernel.
fn time(device: Device, kind: Kind, shape: Shape) -> Option<f64> {
    let Shape { batch_size: b, sequence_length: s, head_dim: h, .. } = shape;
    let heads = |count: i64| {
        Tensor::randn([b, s, count, h], (kind, device)).transpose(1, 2).set_requires_grad(true)
    };
    let inputs = [heads(shape.num_heads), heads(shape.num_kv_heads), heads(shape.num_kv_heads)];
    let mask = shape.masked.then(|| Tensor::ones([s, s], (Kind::Bool, device)).tril(0));
    let wait = || {
        if let Device::Cuda(ordinal) = device {
            Cuda::synchronize(ordinal as i64);
        }
    };
    let pass = || {
        let [q, k, v] = &inputs;
        let grouped = shape.num_heads != shape.num_kv_heads;
        tch::with_grad(|| {
            let out = Tensor::f_scaled_dot_product_attention(
                q,
                k,
                v,
                mask.as_ref(),
                0.0,
                mask.is_none(),
                None,
                grouped,
            );
            Tensor::f_run_backward(&[out.ok()?.sum(Kind::Float)], &inputs, false, false).ok()
        })
    };
    pass()?;
    wait();
    let started = Instant::now();
    for _ in 0..PASSES {
        pass()?;
    }
    wait();
    Some(started.elapsed().as_secs_f64())
}

/// Calls a method of libtorch's global context that takes a flag.
fn switch(method: &CStr, on: bool) -> Result<(), CudaError> {
    let context = find(c"_ZN2at13globalContextEv")?;
    let method = find(method)?;
    // SAFETY: the names are those of `at::Context& at::globalContext()` and of
    // `void at::Context::set...(bool)`, which on this platform (Itanium C++ ABI) take and give what
    // C functions of a pointer and a flag do, and throw nothing: they store the flag.
    unsafe {
        let context: extern "C" fn() -> *mut c_void = std::mem::transmute(context);
        let method: extern "C" fn(*mut c_void, bool) = std::mem::transmute(method);
        method(context(), on);
    }
    Ok(())
}

/// A function of the libraries that this process has loaded.
pub(super) fn find(name: &CStr) -> Result<*mut c_void, CudaError> {
    // SAFETY: it looks a name up.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        return Err(CudaError::Switch { name: name.to_string_lossy().into_owned() });
    }
    Ok(found)
}
