//! Between the state of a run and its checkpoints: records out, buffers in.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use grove_optim::{StateSpec, Storage, WholeStateSpec};
use grove_parallel::Reduction;
use grove_parallel::layout::{ParamPlace, Segment};
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{
    self, Checkpoint, Contents, Dtype, ExtraFile, RunStateRecord, TensorFile, TensorRecord,
    TensorSpec,
};
use crate::config::{Plan, Tokenizer};
use crate::error::Error;
use crate::guard::History;
use crate::kernel::view;
use crate::model::units::ParamSpec;
use crate::ownership::WholeParam;
use crate::rules::Rules;
use crate::sharding::Sharding;
use crate::state::{OwnedSegment, RunState, StateBuffer, UnitState, storage_dtype};

/// What a checkpoint records of the data.
#[derive(Clone, Debug)]
pub struct DataRecord {
    /// Identifies the training tokens.
    pub fingerprint: String,
    /// A mixture's weights as TOML; empty where there is none.
    pub stages: String,
}

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
/// Over the first shard group, for each unit: an all-gather of masters, and an all-reduce of each
/// form of state. Over all ranks: a broadcast of each state of a parameter that is taken whole.
pub fn gather(
    state: &RunState,
    sharding: &Sharding<'_>,
) -> Result<Option<WholeState>, grove_parallel::Error> {
    let mut units = Vec::new();
    for unit in &state.units {
        let owned_whole = owned_states(unit, sharding)?;
        if sharding.placement.replica() > 0 {
            continue;
        }
        let whole = HostUnit::gather(unit, sharding)?;
        if sharding.placement.rank == 0 {
            units.push(HostUnit { owned_whole, ..whole });
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
    (whole, rules): (&WholeState, &Rules),
    data: &DataRecord,
) -> Result<PathBuf, Error> {
    let hosts = &whole.units;
    let mut model = Vec::new();
    let mut masters = Vec::new();
    let mut optimizer = Vec::new();
    for (unit, host) in state.units.iter().zip(hosts) {
        records(unit, &host.working, "", &mut model);
        records(unit, &host.masters, "", &mut masters);
        for (place, param) in unit.layout.params().iter().zip(&unit.spec.params) {
            for wanted in rules.state_specs(param) {
                let (_, flat) = host
                    .states
                    .iter()
                    .find(|(spec, _)| spec == wanted)
                    .expect("a unit has a buffer for every form of state of its parameters");
                optimizer.push(state_record(*wanted, param, place, flat));
            }
        }
        optimizer.extend(host.owned_whole.iter().map(|(spec, values)| {
            let bytes = view::bytes(values).into();
            TensorRecord { spec: spec.clone(), bytes }
        }));
    }
    let parameter_steps: BTreeMap<_, _> =
        state.params().map(|(_, _, p)| (p.name.clone(), state.updates_of(&p.name))).collect();
    let run_state = RunStateRecord {
        step: state.step,
        num_tokens: state.num_tokens,
        total_flops: state.flops,
        seed: plan.seed,
        parameter_steps,
        data_fingerprint: data.fingerprint.clone(),
        data_stages: data.stages.clone(),
        plan_toml: plan.to_toml(),
        guard: state.history.to_record(),
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

/// What becomes of the optimizer's state of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optimizer {
    /// It goes on.
    Resumed,
    /// It is left, and new state starts from the masters.
    Restarted,
}

/// Fills a state's buffers and counters from a checkpoint of the same model and rules; of the
/// working copies this rank's part. With [`Optimizer::Restarted`] the optimizer's state is that of a
/// first step, whatever the checkpoint has.
///
/// # Errors
/// If tensors are missing, superfluous, or of another shape or dtype: all are named.
pub fn load(
    state: &mut RunState,
    (rules, optimizer): (&Rules, Optimizer),
    checkpoint: &Checkpoint,
) -> Result<(), Error> {
    let mut expected = (Vec::new(), Vec::new());
    for unit in &state.units {
        expected.0.extend(specs(unit, &unit.masters, ""));
        for param in &unit.spec.params {
            let (kind, states) = (unit.masters.kind(), rules.state_specs(param).iter());
            expected.1.extend(states.map(|&spec| state_spec(spec, param, kind)));
            let whole = rules.taken_whole(param).map(|(rule, facts)| rule.state_specs(facts));
            let whole = whole.unwrap_or_default();
            expected.1.extend(whole.iter().map(|spec| whole_state_spec(spec, param, kind)));
        }
    }
    checkpoint.masters().check_names(&expected.0)?;
    if optimizer == Optimizer::Resumed {
        checkpoint.optimizer().check_names(&expected.1)?;
    }
    for unit in &state.units {
        let owned = || unit.owned.clone();
        fill(unit, (owned(), &unit.masters), checkpoint.masters(), "")?;
        if optimizer == Optimizer::Resumed {
            fill_states(unit, checkpoint.optimizer())?;
            fill_whole_states(unit, checkpoint.optimizer())?;
        }
    }
    if optimizer == Optimizer::Restarted {
        state.restart_optimizer();
    }
    let saved = checkpoint.run_state();
    (state.step, state.num_tokens, state.flops) = (saved.step, saved.num_tokens, saved.total_flops);
    state.history = History::from_record(&saved.guard);
    // New state has seen no update.
    let count = |count| if optimizer == Optimizer::Resumed { count } else { 0 };
    let counts = saved.parameter_steps.iter().map(|(name, &steps)| (name, count(steps)));
    state.set_updates(counts);
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
    /// Each form of state, at the places of the parameters in the unit.
    states: Vec<(StateSpec, Tensor)>,
    /// Each state of parameters that are taken whole.
    owned_whole: Vec<(TensorSpec, Tensor)>,
}

impl HostUnit {
    fn gather(unit: &UnitState, sharding: &Sharding<'_>) -> Result<Self, grove_parallel::Error> {
        let states = (0..unit.states.len()).map(|buffer| whole_state(unit, buffer, sharding));
        let states = states.collect::<Result<_, _>>()?;
        let masters = whole_masters(unit, sharding)?;
        let working = match unit.holds_whole_working() {
            true => unit.working.to_device(Device::Cpu),
            false if unit.has_eval_point() => whole_working(unit, sharding)?,
            // As an update rounds them.
            false => masters.to_kind(unit.working.kind()),
        };
        Ok(Self { working, masters, states, owned_whole: Vec::new() })
    }
}

fn whole_masters(
    unit: &UnitState,
    sharding: &Sharding<'_>,
) -> Result<Tensor, grove_parallel::Error> {
    whole(unit, &unit.masters, sharding, "masters")
}

/// Of sharded working copies that are another model than the masters.
fn whole_working(
    unit: &UnitState,
    sharding: &Sharding<'_>,
) -> Result<Tensor, grove_parallel::Error> {
    whole(unit, &unit.working, sharding, "working copies")
}

fn whole(
    unit: &UnitState,
    owned: &Tensor,
    sharding: &Sharding<'_>,
    what: &str,
) -> Result<Tensor, grove_parallel::Error> {
    let owned = owned.to_device(Device::Cpu);
    if unit.owned.len() == unit.layout.padded_numel() {
        return Ok(owned);
    }
    let kind = (owned.kind(), Device::Cpu);
    let whole = Tensor::empty([unit.layout.padded_numel() as i64], kind);
    let name = format!("{what} of {}", unit.spec.name);
    sharding.shards().all_gather(&owned, &whole, &name)?.wait()?;
    Ok(whole)
}

/// One form of state of a whole unit. The ranks' parts differ in length, so they are laid into
/// zeros and added up: as integers, which changes no bit.
fn whole_state(
    unit: &UnitState,
    buffer: usize,
    sharding: &Sharding<'_>,
) -> Result<(StateSpec, Tensor), grove_parallel::Error> {
    let StateBuffer { spec, flat } = &unit.states[buffer];
    let (storage, flat) = (spec.storage, flat.to_device(Device::Cpu));
    let places = || {
        let place = |(segment, &(index, first)): (_, &(usize, usize))| {
            (index == buffer).then_some((segment, first))
        };
        let all = unit.segments.iter().flat_map(|segment: &OwnedSegment| {
            segment.places.iter().map(move |place| (segment, place))
        });
        all.filter_map(place)
    };
    let alone = unit.owned.len() == unit.layout.padded_numel();
    if alone && places().all(|(segment, first)| first == segment.range.start) {
        return Ok((*spec, flat));
    }
    let count = |numel: usize| storage.num_elements(numel) as i64;
    let whole = Tensor::zeros([count(unit.layout.padded_numel())], (flat.kind(), Device::Cpu));
    for (segment, first) in places() {
        let (position, len) = (unit.owned.start + segment.range.start, count(segment.range.len()));
        whole.narrow(0, count(position), len).copy_(&flat.narrow(0, count(first), len));
    }
    if !alone {
        let words = whole.view_dtype(Kind::Int);
        let name = format!("{} of {}", spec.kind.name(), unit.spec.name);
        sharding.shards().all_reduce(&words, Reduction::Sum, &name)?.wait()?;
    }
    Ok((*spec, whole))
}

/// The states of a unit's parameters that are taken whole, each from its owner, on every rank.
fn owned_states(
    unit: &UnitState,
    sharding: &Sharding<'_>,
) -> Result<Vec<(TensorSpec, Tensor)>, grove_parallel::Error> {
    let (place, kind) = (&sharding.placement, unit.masters.kind());
    let mut states = Vec::new();
    for WholeParam { param, owner, specs, states: owned, .. } in &unit.whole.params {
        for (index, spec) in specs.iter().enumerate() {
            let values = match owned.get(index) {
                Some(state) => state.values.to_device(Device::Cpu),
                None => Tensor::zeros(&spec.shape, (kind, Device::Cpu)),
            };
            let stored = whole_state_spec(spec, &unit.spec.params[*param], kind);
            if place.degree > 1 {
                sharding.world().broadcast(&values, owner.rank(place), &stored.name)?.wait()?;
            }
            states.push((stored, values));
        }
    }
    Ok(states)
}

/// What is stored of one state of a parameter that is taken whole.
fn whole_state_spec(spec: &WholeStateSpec, param: &ParamSpec, accumulation: Kind) -> TensorSpec {
    TensorSpec {
        name: format!("{}/{}", spec.kind.name(), param.name),
        dtype: dtype(accumulation),
        shape: spec.shape.iter().map(|&size| size as usize).collect(),
    }
}

/// What is stored of one state of a parameter.
fn state_spec(spec: StateSpec, param: &ParamSpec, accumulation: Kind) -> TensorSpec {
    let shape: Vec<usize> = param.shape.iter().map(|&size| size as usize).collect();
    TensorSpec {
        name: format!("{}/{}", spec.kind.name(), param.name),
        dtype: dtype(storage_dtype(spec.storage, accumulation)),
        shape: match spec.storage {
            Storage::BlockScale => vec![spec.storage.num_elements(shape.iter().product())],
            _ => shape,
        },
    }
}

/// One state of a parameter, borrowed from the whole unit's.
fn state_record<'a>(
    spec: StateSpec,
    param: &ParamSpec,
    place: &ParamPlace,
    flat: &'a Tensor,
) -> TensorRecord<'a> {
    let (size, count) = (flat.kind().elt_size_in_bytes(), |n| spec.storage.num_elements(n));
    let start = count(place.offset);
    let bytes = &view::bytes(flat)[start * size..(start + count(place.numel)) * size];
    TensorRecord { spec: state_spec(spec, param, flat.kind()), bytes: bytes.into() }
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

/// Fills the states of what this rank owns.
fn fill_states(unit: &UnitState, file: &TensorFile) -> Result<(), Error> {
    for segment in &unit.segments {
        let param = &unit.spec.params[segment.param];
        for &(buffer, first) in &segment.places {
            let StateBuffer { spec, flat } = &unit.states[buffer];
            let stored = file.get(&format!("{}/{}", spec.kind.name(), param.name))?;
            let (kind, count) = (kind(stored.spec.dtype), |n| spec.storage.num_elements(n));
            let (start, len) = (count(segment.param_range.start), count(segment.range.len()));
            let size = kind.elt_size_in_bytes();
            let bytes = &stored.bytes[start * size..(start + len) * size];
            let values = Tensor::from_data_size(bytes, &[len as i64], kind);
            flat.narrow(0, count(first) as i64, len as i64).copy_(&values);
        }
    }
    Ok(())
}

/// Fills the states of the parameters that this rank owns whole.
fn fill_whole_states(unit: &UnitState, file: &TensorFile) -> Result<(), Error> {
    for WholeParam { param, states, .. } in &unit.whole.params {
        let param = &unit.spec.params[*param];
        for state in states {
            let stored = file.get(&format!("{}/{}", state.spec.kind.name(), param.name))?;
            let kind = kind(stored.spec.dtype);
            let values = Tensor::from_data_size(stored.bytes, &state.spec.shape, kind);
            state.values.shallow_clone().copy_(&values);
        }
    }
    Ok(())
}

fn dtype(kind: Kind) -> Dtype {
    match kind {
        Kind::Uint8 => Dtype::U8,
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
