//! Between the state of a run and its checkpoints: records out, buffers in.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use grove_optim::{StateSpec, Storage, WholeStateSpec};
use grove_parallel::layout::Segment;
use tch::{Kind, Tensor};

use crate::checkpoint::{
    self, AllowedChange, Blueprint, Checkpoint, Dtype, ExtraFile, Part, RunStateRecord, SmallFiles,
    Snapshot, TensorFile, TensorList, TensorSpec,
};
use crate::config::{Plan, Tokenizer};
use crate::corpus::{Data, stages_to_toml};
use crate::error::Error;
use crate::guard::History;
use crate::kernel::view::HostTensor;
use crate::model::folding::Folding;
use crate::model::units::ParamSpec;
use crate::ownership::WholeParam;
use crate::rules::Rules;
use crate::sharding::Placement;
use crate::state::{OwnedSegment, RunState, StateBuffer, UnitState, storage_dtype};

/// What is stored of a run's tensors, the same on every rank.
pub fn tensor_list(state: &RunState, rules: &Rules) -> TensorList {
    let (mut model, mut masters, mut optimizer) = (Vec::new(), Vec::new(), Vec::new());
    for unit in &state.units {
        model.extend(specs(unit, &unit.working));
        masters.extend(specs(unit, &unit.masters));
        for param in &unit.spec.params {
            let (kind, states) = (unit.masters.kind(), rules.state_specs(param).iter());
            optimizer.extend(states.map(|&spec| state_spec(spec, param, kind)));
            let whole = rules.taken_whole(param).map(|(rule, facts)| rule.state_specs(facts));
            let whole = whole.unwrap_or_default();
            optimizer.extend(whole.iter().map(|spec| whole_state_spec(spec, param, kind)));
        }
    }
    TensorList { model, masters, optimizer }
}

/// How a snapshot keeps what it is of.
#[derive(Debug)]
pub enum Keeping {
    /// As copies, in the memory of an earlier snapshot: the state may go on.
    Copied(Vec<u8>),
    /// Where it is: the state must stay as it is until it is written.
    Held,
}

/// Takes what this rank brings to a checkpoint: its share of the masters, working copies and
/// optimizer state that it holds, which replicas divide among themselves. Working copies must be
/// settled. The model's weights are those under `folding`: a plain model whatever masks there are;
/// masters are kept as they are.
///
/// # Errors
/// If the blueprint is not that of the state's tensors.
pub fn snapshot(
    (state, folding): (&RunState, Option<&Folding>),
    placement: &Placement,
    blueprint: &Blueprint,
    keeping: Keeping,
) -> Result<Snapshot, checkpoint::Error> {
    let mut values = Vec::new();
    for unit in &state.units {
        // Counted from the first element that is here.
        let brought = placement.summed(&unit.layout);
        let brought = brought.start - unit.owned.start..brought.end - unit.owned.start;
        for segment in &unit.segments {
            let start = segment.range.start.max(brought.start);
            let end = segment.range.end.min(brought.end);
            if start < end {
                collect_values((unit, folding), segment, start..end, &mut values);
            }
        }
        collect_whole_states(unit, &mut values);
    }
    let is_held = matches!(keeping, Keeping::Held);
    let mut snapshot = match keeping {
        Keeping::Held => Snapshot::default(),
        Keeping::Copied(buffer) => {
            let mut snapshot = Snapshot::reusing(buffer);
            let len_bytes =
                |value: &Value| value.values.numel() * value.values.kind().elt_size_in_bytes();
            snapshot.reserve(values.iter().map(len_bytes).sum());
            snapshot
        }
    };
    for Value { places, first, values } in values {
        let places: Vec<_> = places.iter().map(|(part, name)| (*part, name.as_str())).collect();
        let values = HostTensor::new(values);
        match is_held {
            true => snapshot.hold(blueprint, &places, first, Box::new(values))?,
            false => snapshot.add(blueprint, &places, first, values.as_ref())?,
        }
    }
    Ok(snapshot)
}

/// Elements of a stored tensor, from the element `first` on.
struct Value {
    places: Vec<(Part, String)>,
    first: usize,
    values: Tensor,
}

/// The elements `range` of a segment, counted as the segment's are, of all that is stored of them.
fn collect_values(
    (unit, folding): (&UnitState, Option<&Folding>),
    segment: &OwnedSegment,
    range: Range<usize>,
    values: &mut Vec<Value>,
) {
    let param = &unit.spec.params[segment.param];
    let skipped = range.start - segment.range.start;
    let first = segment.param_range.start + skipped;
    let part = |flat: &Tensor| flat.narrow(0, range.start as i64, range.len() as i64);
    let place = |part: Part| (part, param.name.clone());
    let masters = |places| Value { places, first, values: part(&unit.masters) };
    let is_masters = unit.working.kind() == unit.masters.kind() && !unit.has_eval_point();
    if let Some(factors) = folding.and_then(|folding| folding.of(&param.name)) {
        let model = if unit.has_eval_point() { &unit.owned_working() } else { &unit.masters };
        // Rounded once, from the masters where they are the model.
        let wide = part(model).to_kind(unit.masters.kind());
        let folded = factors.fold(first, &wide).to_kind(unit.working.kind());
        values.push(Value { places: vec![place(Part::Model)], first, values: folded });
        values.push(masters(vec![place(Part::Masters)]));
    } else if is_masters {
        values.push(masters(vec![place(Part::Model), place(Part::Masters)]));
    } else {
        let working = part(&unit.owned_working());
        values.push(Value { places: vec![place(Part::Model)], first, values: working });
        values.push(masters(vec![place(Part::Masters)]));
    }
    for &(buffer, position) in &segment.places {
        let StateBuffer { spec, flat } = &unit.states[buffer];
        // Ranks and replicas are cut at multiples of the blocks that share a scale.
        let count = |numel: usize| spec.storage.num_elements(numel);
        let (start, len) = (count(position + skipped) as i64, count(range.len()) as i64);
        values.push(Value {
            places: vec![(Part::Optimizer, state_name(*spec, param))],
            first: count(first),
            values: flat.narrow(0, start, len),
        });
    }
}

/// The states of the parameters that this rank owns whole: no other rank has them.
fn collect_whole_states(unit: &UnitState, values: &mut Vec<Value>) {
    for WholeParam { param, states, .. } in &unit.whole.params {
        for state in states {
            let stored =
                whole_state_spec(&state.spec, &unit.spec.params[*param], state.values.kind());
            values.push(Value {
                places: vec![(Part::Optimizer, stored.name)],
                first: 0,
                values: state.values.shallow_clone(),
            });
        }
    }
}

/// What a checkpoint holds beside tensors.
///
/// # Errors
/// If a file of the tokenizer cannot be read.
pub fn small_files(
    plan: &Plan,
    state: &RunState,
    data: &Data,
    allowed_changes: &[AllowedChange],
) -> Result<SmallFiles, checkpoint::Error> {
    let parameter_steps: BTreeMap<_, _> =
        state.params().map(|(_, _, p)| (p.name.clone(), state.updates_of(&p.name))).collect();
    let run_state = RunStateRecord {
        step: state.step,
        num_tokens: state.num_tokens,
        total_flops: state.flops,
        seed: plan.seed,
        parameter_steps,
        data_fingerprint: data.fingerprint.clone(),
        data_stages: stages_to_toml(data.stages()),
        plan_toml: plan.to_toml(),
        guard: state.history.to_record(),
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        allowed_changes: allowed_changes.to_vec(),
    };
    let folding = plan.folding(state.step);
    let model = folding.as_ref().map_or(&plan.model, |folding| &folding.config);
    let config_json = model.to_hf_json(plan.precision);
    SmallFiles::new(&config_json, &run_state, &tokenizer_files(plan))
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
    let expected = tensor_list(state, rules);
    checkpoint.masters().check_names(&expected.masters)?;
    if optimizer == Optimizer::Resumed {
        checkpoint.optimizer().check_names(&expected.optimizer)?;
    }
    for unit in &state.units {
        fill(unit, (unit.owned.clone(), &unit.masters), checkpoint.masters())?;
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
        for spec in specs(unit, &unit.working) {
            let dtype = model.get(&spec.name).map_or(spec.dtype, |found| found.spec.dtype);
            expected.push(TensorSpec { dtype, ..spec });
        }
    }
    model.check_names(&expected)?;
    units.iter().try_for_each(|unit| {
        let whole = 0..unit.layout.padded_numel();
        fill(unit, (whole, &unit.working), model)
    })
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
        name: state_name(spec, param),
        dtype: dtype(storage_dtype(spec.storage, accumulation)),
        shape: match spec.storage {
            Storage::BlockScale => vec![spec.storage.num_elements(shape.iter().product())],
            _ => shape,
        },
    }
}

fn state_name(spec: StateSpec, param: &ParamSpec) -> String {
    format!("{}/{}", spec.kind.name(), param.name)
}

/// What a flat buffer of a unit stores under which names.
fn specs(unit: &UnitState, flat: &Tensor) -> impl Iterator<Item = TensorSpec> {
    let dtype = dtype(flat.kind());
    unit.spec.params.iter().map(move |param| TensorSpec {
        name: param.name.clone(),
        dtype,
        shape: param.shape.iter().map(|&size| size as usize).collect(),
    })
}

/// Fills `flat`, the elements `owned` of a unit, with their values in a file.
fn fill(
    unit: &UnitState,
    (owned, flat): (Range<usize>, &Tensor),
    file: &TensorFile,
) -> Result<(), Error> {
    for Segment { param, param_range, unit_range } in unit.layout.segments(owned.clone()) {
        let stored = file.get(&unit.layout.params()[param].name)?;
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
            let stored = file.get(&state_name(*spec, param))?;
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
