//! The memory that a GPU has in use, as its driver counts it. Not run on a GPU so far.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use tch::Device;

use super::launch::context;

/// The most memory that was in use on a rank's GPU at the moments it was looked at.
///
/// libtorch keeps what it has reserved for a step, so that one look a step finds the most that the
/// step took. Contexts, libraries and other processes on the same GPU are counted too.
#[derive(Debug)]
pub struct DeviceMemory {
    context: Option<Arc<CudaContext>>,
    peak_bytes: Option<u64>,
}

impl DeviceMemory {
    /// Of a device; nothing is known of the CPU's, or where there is no driver.
    pub fn of(device: Device) -> Self {
        let context = match device {
            Device::Cuda(ordinal) => context(ordinal).ok(),
            _ => None,
        };
        Self { context, peak_bytes: None }
    }

    /// Looks once more and returns the most in use so far, in bytes; `None` if it never could be
    /// read. Does not wait for the device.
    pub fn peak_bytes(&mut self) -> Option<u64> {
        let read = self.context.as_ref().and_then(|context| context.mem_get_info().ok());
        let used = read.map(|(free, total)| total.saturating_sub(free) as u64);
        self.peak_bytes = self.peak_bytes.max(used);
        self.peak_bytes
    }
}

#[cfg(test)]
mod tests {
    //! Where there is no GPU.

    use super::*;

    #[test]
    fn without_a_gpu_nothing_is_known() {
        assert_eq!(DeviceMemory::of(Device::Cpu).peak_bytes(), None);
    }
}
