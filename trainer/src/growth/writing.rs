//! A grown model as a checkpoint.

use std::path::{Path, PathBuf};

use grove_optim::Storage;
use tch::{Kind, Tensor};

use super::anatomy::{Anatomy, Assembly};
use super::parts::{Parts, Plane, param_value};
use super::states::encoded;
use crate::checkpoint::{self, Contents, Dtype, ExtraFile, RunStateRecord, TensorRecord};
use crate::config::{Plan, Precision};
use crate::error::Error;
use crate::kernel::view;
use crate::rules::Rules;

/// Writes `model` as the checkpoint of step 0 of the run folder `out` and returns its folder. With
/// it goes the optimizer's state, with each parameter's own count of updates, which
/// `[init.growth]` takes up.
///
/// # Errors
/// If it cannot be written.
pub fn write(
    model: &dyn Parts,
    (plan, rules): (&Plan, &Rules),
    (num_tokens, total_flops): (u64, u128),
    (out, extra_files): (&Path, Vec<ExtraFile<'_>>),
) -> Result<PathBuf, Error> {
    let accumulation = if plan.precision == Precision::Fp64 { Kind::Double } else { Kind::Float };
    let working = match plan.precision {
        Precision::Bf16 => Kind::BFloat16,
        Precision::Fp32 => Kind::Float,
        Precision::Fp64 => Kind::Double,
    };
    let anatomy = Anatomy::new(model.config());
    let (mut weights, mut masters, mut optimizer) = (Vec::new(), Vec::new(), Vec::new());
    for assembly in anatomy.params() {
        let value = param_value(model, assembly, Plane::Weight).to_kind(accumulation);
        weights.push(record(&assembly.spec.name, shape(assembly), &value.to_kind(working)));
        masters.push(record(&assembly.spec.name, shape(assembly), &value));
        for (spec, flat) in encoded(model, assembly, rules, accumulation) {
            let name = format!("{}/{}", spec.kind.name(), assembly.spec.name);
            let shape = match spec.storage {
                Storage::BlockScale => vec![flat.numel()],
                _ => shape(assembly),
            };
            optimizer.push(record(&name, shape, &flat));
        }
    }
    let counts = anatomy.params().iter();
    let counts = counts.map(|a| (a.spec.name.clone(), model.steps(a.parts[0])));
    let contents = Contents {
        config_json: &plan.model.to_hf_json(plan.precision),
        model: weights,
        masters,
        optimizer,
        run_state: RunStateRecord {
            step: 0,
            num_tokens,
            total_flops,
            seed: plan.seed,
            parameter_steps: counts.collect(),
            data_fingerprint: String::new(),
            data_stages: String::new(),
            guard: Default::default(),
            allowed_changes: Vec::new(),
            plan_toml: plan.to_toml(),
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        extra_files,
        max_shard_bytes: plan.checkpoint.max_shard_bytes,
    };
    Ok(checkpoint::save(out, &contents)?)
}

fn shape(assembly: &Assembly) -> Vec<usize> {
    assembly.spec.shape.iter().map(|&size| size as usize).collect()
}

fn record(name: &str, shape: Vec<usize>, value: &Tensor) -> TensorRecord<'static> {
    let dtype = match value.kind() {
        Kind::Uint8 => Dtype::U8,
        Kind::BFloat16 => Dtype::Bf16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        other => unreachable!("nothing is stored as {other:?}"),
    };
    TensorRecord::new(name, dtype, &shape, view::bytes(&value.contiguous()).to_vec())
}
