//! Between the state of a run and its checkpoints: records out, buffers in.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use grove_parallel::layout::Segment;
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{
    self, Checkpoint, Contents, Dtype, ExtraFile, RunStateRecord, TensorFile, TensorRecord,
    TensorSpec,
};
use crate::config::{Plan, Tokenizer};
use crate::error::Error;
use crate::kernel::view;
use crate::sharding::Sharding;
use crate::state::{RunState, UnitState};

/// The state of all ranks in this rank's host memory.
#[derive(Debug)]
pub struct WholeState {
    units: Vec<HostUnit>,
}

/// Brings the shards of all ranks together, on rank 0; the others get nothing. Working copies must
/// be settled.
///
/// # Errors
/// If a gather fails.
///
/// # Collectives
/// Over each shard group, for each unit: an all-gather of masters and one of each kind of state.
pub fn gather(
    state: &RunState,
    sharding: &Sharding<'_>,
) -> Result<Option<WholeState>, grove_parallel::Error> {
    let mut units = Vec::new();
    for unit in &state.units {
        let whole = HostUnit::gather(unit, sharding)?;
        if sharding.placement.rank == 0 {
            units.push(whole);
        }
    }
    Ok((sharding.placement.rank == 0).then_some(WholeState { units }))
}

/// Saves the state as a checkpoint in the run's folder and returns its folder.
///
/// # Errors
/// If it cannot be written; earlier checkpoints are then as they were.
pub fn save(
    plan: &Plan,
    state: &RunState,
    whole: &WholeState,
    fingerprint: &str,
) -> Result<PathBuf, Error> {
    let hosts = &whole.units;
    let mut model = Vec::new();
    let mut masters = Vec::new();
    let mut optimizer = Vec::new();
    for (unit, host) in state.units.iter().zip(hosts) {
        records(unit, &host.working, "", &mut model);
        records(unit, &host.masters, "", &mut masters);
        for (kind, moment) in &host.moments {
            records(unit, moment, &format!("{kind}/"), &mut optimizer);
        }
    }
    let parameter_steps: BTreeMap<_, _> =
        state.params().map(|(_, _, param)| (param.name.clone(), state.step)).collect();
    let run_state = RunStateRecord {
        step: state.step,
        num_tokens: state.num_tokens,
        total_flops: state.flops,
        seed: plan.seed,
        parameter_steps,
        data_fingerprint: fingerprint.to_owned(),
        plan_toml: plan.to_toml(),
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let config_json = plan.model.to_hf_json(plan.precision);
    let contents = Contents {
        config_json: &config_json,
        model,
        masters,
        optimizer,
        run_state,
        extra_files: tokenizer_files(plan),
    };
    Ok(checkpoint::save(&plan.run.dir, &contents)?)
}

/// Fills a state's buffers and counters from a checkpoint of the same model and rule; of the
/// working copies this rank's part.
///
/// # Errors
/// If tensors are missing, superfluous, or of another shape or dtype: all are named.
pub fn load(state: &mut RunState, checkpoint: &Checkpoint) -> Result<(), Error> {
    let mut expected = (Vec::new(), Vec::new());
    for unit in &state.units {
        expected.0.extend(specs(unit, &unit.masters, ""));
        for (kind, moment) in &unit.moments {
            expected.1.extend(specs(unit, moment, &format!("{}/", kind.name())));
        }
    }
    checkpoint.masters().check_names(&expected.0)?;
    checkpoint.optimizer().check_names(&expected.1)?;
    for unit in &state.units {
        let owned = || unit.owned.clone();
        fill(unit, (owned(), &unit.masters), checkpoint.masters(), "")?;
        for (kind, moment) in &unit.moments {
            let prefix = format!("{}/", kind.name());
            fill(unit, (owned(), moment), checkpoint.optimizer(), &prefix)?;
        }
    }
    let saved = checkpoint.run_state();
    (state.step, state.num_tokens, state.flops) = (saved.step, saved.num_tokens, saved.total_flops);
    state.round_masters();
    Ok(())
}

/// Fills the working copies from a model file, for evaluation and sampling: values of any
/// floating dtype are rounded to the working copies'.
///
/// # Errors
/// If a tensor is missing or of another shape.
pub fn load_working(units: &[UnitState], model: &TensorFile) -> Result<(), Error> {
    let mut expected = Vec::new();
    for unit in units {
        for spec in specs(unit, &unit.working, "") {
            let dtype = model.get(&spec.name).map_or(spec.dtype, |found| found.spec.dtype);
            expected.push(TensorSpec { dtype, ..spec });
        }
    }
    model.check_names(&expected)?;
    units.iter().try_for_each(|unit| {
        let whole = 0..unit.layout.padded_numel();
        fill(unit, (whole, &unit.working), model, "")
    })
}

/// A unit's whole buffers in host memory: the buffers themselves where they are whole and there.
#[derive(Debug)]
struct HostUnit {
    working: Tensor,
    masters: Tensor,
    moments: Vec<(&'static str, Tensor)>,
}

impl HostUnit {
    fn gather(unit: &UnitState, sharding: &Sharding<'_>) -> Result<Self, grove_parallel::Error> {
        let whole = |owned: &Tensor| -> Result<Tensor, grove_parallel::Error> {
            let owned = owned.to_device(Device::Cpu);
            if unit.owned.len() == unit.layout.padded_numel() {
                return Ok(owned);
            }
            let kind = (owned.kind(), Device::Cpu);
            let whole = Tensor::empty([unit.layout.padded_numel() as i64], kind);
            sharding.shards().all_gather(&owned, &whole, &unit.spec.name)?.wait()?;
            Ok(whole)
        };
        let masters = whole(&unit.masters)?;
        let moments = unit.moments.iter().map(|(kind, moment)| Ok((kind.name(), whole(moment)?)));
        Ok(Self {
            moments: moments.collect::<Result<_, grove_parallel::Error>>()?,
            working: match unit.holds_whole_working() {
                true => unit.working.to_device(Device::Cpu),
                // As an update rounds them.
                false => masters.to_kind(unit.working.kind()),
            },
            masters,
        })
    }
}

/// Appends a record for each parameter of a flat host buffer, which is borrowed.
fn records<'a>(
    unit: &UnitState,
    flat: &'a Tensor,
    prefix: &str,
    records: &mut Vec<TensorRecord<'a>>,
) {
    let (bytes, size) = (view::bytes(flat), flat.kind().elt_size_in_bytes());
    for (spec, place) in specs(unit, flat, prefix).zip(unit.layout.params()) {
        let range = place.range();
        let bytes = &bytes[range.start * size..range.end * size];
        records.push(TensorRecord { spec, bytes: bytes.into() });
    }
}

/// What a flat buffer of a unit stores under which names.
fn specs(unit: &UnitState, flat: &Tensor, prefix: &str) -> impl Iterator<Item = TensorSpec> {
    let dtype = dtype(flat.kind());
    unit.spec.params.iter().map(move |param| TensorSpec {
        name: format!("{prefix}{}", param.name),
        dtype,
        shape: param.shape.iter().map(|&size| size as usize).collect(),
    })
}

/// Fills `flat`, the elements `owned` of a unit, with their values in a file.
fn fill(
    unit: &UnitState,
    (owned, flat): (Range<usize>, &Tensor),
    file: &TensorFile,
    prefix: &str,
) -> Result<(), Error> {
    for Segment { param, param_range, unit_range } in unit.layout.segments(owned.clone()) {
        let stored = file.get(&format!("{prefix}{}", unit.layout.params()[param].name))?;
        let kind = kind(stored.spec.dtype);
        let (size, numel) = (kind.elt_size_in_bytes(), unit_range.len() as i64);
        let bytes = &stored.bytes[param_range.start * size..param_range.end * size];
        let values = Tensor::from_data_size(bytes, &[numel], kind);
        flat.narrow(0, (unit_range.start - owned.start) as i64, numel).copy_(&values);
    }
    Ok(())
}

fn dtype(kind: Kind) -> Dtype {
    match kind {
        Kind::BFloat16 => Dtype::Bf16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        other => unreachable!("a run has no buffers of {other:?}"),
    }
}

fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::U8 => Kind::Uint8,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
    }
}

/// The tokenizer's files, so that a checkpoint folder can be used alone.
fn tokenizer_files(plan: &Plan) -> Vec<ExtraFile<'static>> {
    const NAMES: [&str; 4] =
        ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"];
    let Some(Tokenizer::File(path)) = &plan.data.tokenizer else { return Vec::new() };
    let candidates =
        if path.is_dir() { NAMES.map(|name| path.join(name)).to_vec() } else { vec![path.clone()] };
    let present = candidates.into_iter().filter(|path: &PathBuf| Path::exists(path));
    present.map(|from| ExtraFile::Copy { from }).collect()
}
