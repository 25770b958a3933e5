//! `[gpu]`: defaults, and what 8-bit products need.

use super::Problems;
use crate::config::plan::GpuPlan;
use crate::config::run_config::GpuTable;
use crate::model::config::Precision;
use crate::model::fp8::Fp8;

pub(super) fn resolve(table: &GpuTable, precision: Precision, problems: &mut Problems) -> GpuPlan {
    let default = GpuPlan::default();
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
    GpuPlan {
        fused: table.fused.unwrap_or(default.fused),
        attention: table.attention.unwrap_or(default.attention),
        fp8,
    }
}
