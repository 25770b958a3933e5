//! CUDA tensors over MPI: through host memory and back. Not run on a GPU so far.

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    collective::{Call, Onto, Operation, call::Buffers},
    error::{Error, Result},
};

/// Runs `exchange` on host memory with the contents of `buffers`, and brings the result back.
/// Host tensors are used as they are.
///
/// The copies run on the device's default stream, after whatever was queued there; the copy to
/// the host waits for it. Work on other streams must be synchronized by the caller.
pub(super) fn with_host_buffers(
    call: &Call,
    buffers: &Buffers,
    exchange: impl FnOnce(&Buffers) -> Result<()>,
) -> Result<()> {
    let failed = |error: TchError| Error::Tensor {
        operation: call.operation,
        name: call.name.clone(),
        message: error.to_string(),
    };
    let (host, result, device_tensor) = match buffers {
        Buffers::InPlace(tensor) if tensor.device() != Device::Cpu => {
            let host = to_host(tensor).map_err(failed)?;
            (Buffers::InPlace(host.shallow_clone()), host, tensor)
        }
        Buffers::Between { input, output } if output.device() != Device::Cpu => {
            let input = to_host(input).map_err(failed)?;
            let host = match call.operation {
                Operation::OrderedReduceScatter(Onto::Output) => to_host(output),
                _ => pinned(&output.size(), output.kind(), output.device()),
            }
            .map_err(failed)?;
            (Buffers::Between { input, output: host.shallow_clone() }, host, output)
        }
        Buffers::None | Buffers::InPlace(_) | Buffers::Between { .. } => return exchange(buffers),
    };
    if let Err(error) = exchange(&host) {
        // MPI may still be reading and writing this memory, so it is never given back.
        std::mem::forget(host);
        return Err(error);
    }
    tch::no_grad(|| device_tensor.shallow_clone().f_copy_(&result)).map_err(failed)
}

fn to_host(tensor: &Tensor) -> std::result::Result<Tensor, TchError> {
    let mut host = pinned(&tensor.size(), tensor.kind(), tensor.device())?;
    tch::no_grad(|| host.f_copy_(tensor))?;
    Ok(host)
}

/// A host tensor in page-locked memory, or in ordinary memory where there is none.
fn pinned(shape: &[i64], kind: Kind, device: Device) -> std::result::Result<Tensor, TchError> {
    let host = Tensor::f_empty(shape, (kind, Device::Cpu))?;
    Ok(host.f_pin_memory(device).unwrap_or(host))
}
