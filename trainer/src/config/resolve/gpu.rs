//! `[gpu]`: defaults, what 8-bit products need, and what can be recorded.

use super::Problems;
use crate::config::plan::{Device, GpuPlan};
use crate::config::run_config::RunConfig;
use crate::model::config::Precision;
use crate::model::fp8::Fp8;

pub(super) fn resolve(
    config: &RunConfig,
    mask_documents: Option<bool>,
    problems: &mut Problems,
) -> GpuPlan {
    let (table, default) = (&config.gpu, GpuPlan::default());
    let precision = config.precision.unwrap_or(Precision::Bf16);
    let fp8 = table.fp8.unwrap_or(default.fp8);
    problems.require(
        fp8 == Fp8::Off || precision == Precision::Bf16,
        "gpu.fp8",
        match fp8 {
            Fp8::Off => "off",
            Fp8::Tensor => "tensor",
            Fp8::Row => "row",
        },
        "rounds matrices of bf16 to 8 bits, and precision is another",
        "use precision = \"bf16\", or gpu.fp8 = \"off\"",
    );
    let plan = GpuPlan {
        fused: table.fused.unwrap_or(default.fused),
        attention: table.attention.unwrap_or(default.attention),
        fp8,
        graphs: table.graphs.unwrap_or(default.graphs),
    };
    let refusals = [
        (
            config.device == Some(Device::Cpu),
            "records what a GPU is asked for, and device is the CPU",
            "use device = \"cuda\", or gpu.graphs = false",
        ),
        (
            !plan.fused || precision == Precision::Fp64,
            "needs the kernels of gpu.fused in bf16 or fp32: libtorch's gradient of the embedding \
             waits for the GPU, which cannot be recorded",
            "use gpu.fused = true and another precision, or gpu.graphs = false",
        ),
        (
            mask_documents == Some(true),
            "records one micro-step for all, and documents cut each batch elsewhere",
            "use data.mask_documents = false, or gpu.graphs = false",
        ),
    ];
    for (refused, problem, remedy) in refusals {
        problems.require(!(plan.graphs && refused), "gpu.graphs", plan.graphs, problem, remedy);
    }
    plan
}
