//! What a run costs, as the machine tells it: energy, and the GPU's memory.

use tch::Device;

use crate::cuda::DeviceMemory;
use crate::metrics::{EnergyMeter, GpuEnergy};

/// The machine's meters.
#[derive(Debug)]
pub(super) struct Meters {
    processors: EnergyMeter,
    /// If the run computes on one.
    gpus: Option<GpuEnergy>,
    memory: DeviceMemory,
}

impl Meters {
    /// Starts measuring now, for a run on `device`.
    pub(super) fn start(device: Device) -> Self {
        Self {
            processors: EnergyMeter::start(),
            gpus: (device != Device::Cpu).then(GpuEnergy::start).flatten(),
            memory: DeviceMemory::of(device),
        }
    }

    /// Joules of processors and of GPUs since the last call, where they can be read.
    pub(super) fn joules(&mut self) -> (Option<f64>, Option<f64>) {
        (self.processors.joules(), self.gpus.as_mut().and_then(GpuEnergy::joules))
    }

    /// The most memory in use on the GPU so far, in bytes.
    pub(super) fn peak_device_memory_bytes(&mut self) -> Option<u64> {
        self.memory.peak_bytes()
    }
}
