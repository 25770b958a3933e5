//! Everything a run is between two steps: this rank's part of the units' buffers, and the counters.

use std::collections::BTreeMap;
use std::ops::Range;

use grove_optim::{Start, StateKind, StateSpec, Storage};
use grove_parallel::UnitLayout;
use grove_parallel::layout::{ALIGNMENT_ELEMENTS, ParamShape, Segment};
use tch::{Device, Kind, Tensor};

use crate::guard::History;
use crate::model::compute::Compute;
use crate::model::init;
use crate::model::units::{ParamSpec, UnitSpec};
use crate::ownership::{self, WholeUnit};
use crate::rules::Rules;
use crate::sharding::Placement;

/// The flat buffers of one unit on this rank. A whole buffer has `layout.padded_numel()` elements,
/// a sharded one those of `owned`. What lies in padding is never read.
#[derive(Debug)]
pub struct UnitState {
    /// What the unit's parameters are.
    pub spec: UnitSpec,
    /// Where they lie in a whole buffer.
    pub layout: UnitLayout,
    /// The elements whose masters and optimizer state are here.
    pub owned: Range<usize>,
    /// Working copies, compute dtype: whole, or `owned` where working copies are sharded. When the
    /// compute dtype is the masters' one, the masters are a view into them.
    pub working: Tensor,
    /// Gradient accumulators, accumulation dtype: `owned`, or whole where
    /// [`Placement::accumulates_whole`].
    pub grads: Tensor,
    /// Master weights of `owned`, accumulation dtype: what the optimizer updates.
    pub masters: Tensor,
    /// The parts of parameters that `owned` holds, in order.
    pub segments: Vec<OwnedSegment>,
    /// The optimizer's state: one buffer for each form of state that some parameter has, for the
    /// segments of those parameters, one after the other.
    pub states: Vec<StateBuffer>,
    /// The parameters that their rule needs whole, with the states of those that this rank owns.
    pub whole: WholeUnit,
}

/// A part of a parameter, with its place in this rank's buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedSegment {
    /// Index of the parameter in the unit.
    pub param: usize,
    /// The elements, counted from the parameter's first.
    pub param_range: Range<usize>,
    /// The same elements, counted from the first of `owned`. It begins where the segment before it
    /// ends, rounded up to [`ALIGNMENT_ELEMENTS`].
    pub range: Range<usize>,
    /// For each state that the rule keeps for the parameter: the buffer's index, and the first
    /// element of the segment in it, counted in elements of parameters.
    pub places: Vec<(usize, usize)>,
}

impl OwnedSegment {
    /// Its elements with the padding behind them.
    pub fn padded_len(&self) -> usize {
        self.range.len().next_multiple_of(ALIGNMENT_ELEMENTS)
    }
}

/// The state of one kind and storage.
#[derive(Debug)]
pub struct StateBuffer {
    /// What it holds, and how.
    pub spec: StateSpec,
    /// The values, in the dtype of the storage.
    pub flat: Tensor,
}

/// The dtype of a storage beside masters of `accumulation` dtype.
pub fn storage_dtype(storage: Storage, accumulation: Kind) -> Kind {
    match storage {
        Storage::Accumulation => accumulation,
        Storage::Bf16 => Kind::BFloat16,
        Storage::Codes => Kind::Uint8,
        Storage::BlockScale => Kind::Float,
    }
}

impl UnitState {
    /// Whether the working copies of the whole unit are here.
    pub fn holds_whole_working(&self) -> bool {
        self.working.numel() == self.layout.padded_numel()
    }

    /// Whether the model to evaluate and keep is another than the masters, for some parameter.
    pub fn has_eval_point(&self) -> bool {
        self.states.iter().any(|state| state.spec.kind == StateKind::BaseIterate)
    }

    /// Whether the masters lie inside the working copies.
    pub fn masters_are_working(&self) -> bool {
        self.masters.kind() == self.working.kind()
            && self.masters.device() == self.working.device()
            && self.masters.data_ptr() == self.owned_working().data_ptr()
    }

    /// The working copies of `owned`.
    pub fn owned_working(&self) -> Tensor {
        self.owned_part(&self.working)
    }

    /// The gradient sums of `owned`.
    pub fn owned_grads(&self) -> Tensor {
        self.owned_part(&self.grads)
    }

    /// Every optimizer state that this rank keeps.
    pub fn state_tensors(&self) -> impl Iterator<Item = &Tensor> {
        let flat = self.states.iter().map(|state| &state.flat);
        let owned = self.whole.params.iter().flat_map(|param| &param.states);
        flat.chain(owned.map(|state| &state.values))
    }

    fn zero_states(&mut self) {
        self.state_tensors().for_each(|state| drop(state.shallow_clone().zero_()));
    }

    fn owned_part(&self, buffer: &Tensor) -> Tensor {
        if buffer.numel() == self.owned.len() {
            return buffer.shallow_clone();
        }
        buffer.narrow(0, self.owned.start as i64, self.owned.len() as i64)
    }
}

/// What a run is between two steps.
#[derive(Debug)]
pub struct RunState {
    /// The units in execution order.
    pub units: Vec<UnitState>,
    /// Optimizer steps done, those included that were skipped.
    pub step: u64,
    /// What the guards remember of them.
    pub history: History,
    /// Tokens trained on, all ranks together.
    pub num_tokens: u64,
    /// Floating-point operations spent, all ranks together.
    pub flops: u128,
    /// By how many a parameter's own count of updates differs from `num_updates`, for those where it does:
    /// parameters of a grown model.
    pub count_offsets: BTreeMap<String, i64>,
}

impl RunState {
    /// A state with zeroed buffers: to be filled by [`RunState::initialize`] or from a checkpoint.
    /// Masters and optimizer state live on `home`.
    ///
    /// # Errors
    /// If the units' parameters do not make a layout (a duplicate name).
    pub fn allocate(
        compute: &Compute,
        units: &[UnitSpec],
        rules: &Rules,
        (placement, home): (&Placement, Device),
    ) -> Result<Self, grove_parallel::Error> {
        let owners = ownership::owners(units, rules, placement.degree);
        let units = units
            .iter()
            .zip(&owners)
            .map(|(spec, owners)| allocate_unit(compute, spec, (rules, owners), (placement, home)));
        Ok(Self::at_start(units.collect::<Result<_, _>>()?))
    }

    /// A state whose working copies alone have memory: for running a model without training it.
    ///
    /// # Errors
    /// As [`RunState::allocate`].
    pub fn allocate_working(
        compute: &Compute,
        units: &[UnitSpec],
    ) -> Result<Self, grove_parallel::Error> {
        let units = units.iter().map(|spec| allocate_working_unit(compute, spec));
        Ok(Self::at_start(units.collect::<Result<_, _>>()?))
    }

    fn at_start(units: Vec<UnitState>) -> Self {
        Self {
            units,
            step: 0,
            history: History::default(),
            num_tokens: 0,
            flops: 0,
            count_offsets: BTreeMap::new(),
        }
    }

    /// Zeroes masters and optimizer state and sets the counters back: as it was allocated.
    pub fn clear(&mut self) {
        for unit in &mut self.units {
            let _ = unit.masters.zero_();
            unit.zero_states();
        }
        (self.step, self.num_tokens, self.flops) = (0, 0, 0);
        self.history = History::default();
        self.count_offsets.clear();
    }

    /// Counts a step of so many tokens without its update.
    pub fn skip(&mut self, num_tokens: u64) {
        self.step += 1;
        self.num_tokens += num_tokens;
        self.history.skipped_steps += 1;
    }

    /// Updates done: steps but for those that were skipped.
    pub fn num_updates(&self) -> u64 {
        self.step - self.history.skipped_steps
    }

    /// Fills the masters with initial values drawn by (seed, parameter name), and this rank's part
    /// of the working copies from them.
    pub fn initialize(&mut self, compute: &Compute, seed: u64) {
        for unit in &mut self.units {
            let values = initial_values(compute, unit, seed);
            unit.masters.copy_(&Tensor::from_slice(&values[unit.owned.clone()]));
            start_states(unit);
        }
        self.round_masters();
    }

    /// Puts every optimizer state where it is before the first step, from the masters as they are.
    pub fn restart_optimizer(&mut self) {
        for unit in &mut self.units {
            unit.zero_states();
            start_states(unit);
        }
    }

    /// Fills the masters by what `fill` does for each unit, and all else from them, as
    /// [`RunState::initialize`] does.
    ///
    /// # Errors
    /// Those of `fill`.
    pub fn start_from<E>(&mut self, fill: impl Fn(&UnitState) -> Result<(), E>) -> Result<(), E> {
        for unit in &mut self.units {
            fill(unit)?;
            start_states(unit);
        }
        self.round_masters();
        Ok(())
    }

    /// Rounds the masters to this rank's part of the working copies, as an update does.
    pub fn round_masters(&mut self) {
        for unit in &self.units {
            unit.owned_working().copy_(&unit.masters);
        }
    }

    /// Updates that a parameter has had.
    pub fn updates_of(&self, name: &str) -> u64 {
        self.num_updates().saturating_add_signed(self.count_offsets.get(name).copied().unwrap_or(0))
    }

    /// Notes how many updates each parameter has had, at the present step.
    pub fn set_updates<'a>(&mut self, counts: impl Iterator<Item = (&'a String, u64)>) {
        let done = self.num_updates() as i64;
        let offset = |count: u64| count as i64 - done;
        let offsets = counts.map(|(name, count)| (name.clone(), offset(count)));
        self.count_offsets = offsets.filter(|(_, offset)| *offset != 0).collect();
    }

    /// Every parameter with its unit, in execution order.
    pub fn params(&self) -> impl Iterator<Item = (&UnitState, usize, &ParamSpec)> {
        self.units
            .iter()
            .flat_map(|unit| unit.spec.params.iter().enumerate().map(move |(i, p)| (unit, i, p)))
    }
}

fn layout_of(spec: &UnitSpec, degree: usize) -> Result<UnitLayout, grove_parallel::Error> {
    let shapes: Vec<_> = spec
        .params
        .iter()
        .map(|param| ParamShape { name: param.name.clone(), shape: param.shape.clone() })
        .collect();
    UnitLayout::new(&spec.name, &shapes, degree)
}

fn allocate_working_unit(
    compute: &Compute,
    spec: &UnitSpec,
) -> Result<UnitState, grove_parallel::Error> {
    let layout = layout_of(spec, 1)?;
    let zeros = |numel, kind| Tensor::zeros([numel], (kind, compute.device));
    Ok(UnitState {
        owned: 0..layout.padded_numel(),
        working: zeros(layout.padded_numel() as i64, compute.kind),
        grads: zeros(0, compute.accumulation()),
        masters: zeros(0, compute.accumulation()),
        segments: Vec::new(),
        states: Vec::new(),
        whole: WholeUnit::default(),
        spec: spec.clone(),
        layout,
    })
}

fn allocate_unit(
    compute: &Compute,
    spec: &UnitSpec,
    (rules, owners): (&Rules, &[usize]),
    (placement, home): (&Placement, Device),
) -> Result<UnitState, grove_parallel::Error> {
    let layout = layout_of(spec, placement.degree)?;
    let owned = placement.owned(&layout);
    let (whole, own) = (layout.padded_numel() as i64, owned.len() as i64);
    let zeros = |numel: i64, kind, device| Tensor::zeros([numel], (kind, device));
    let kind = compute.accumulation();
    let working_numel = if placement.shards_working(&layout) { own } else { whole };
    let working = zeros(working_numel, compute.kind, compute.device);
    let (segments, forms) = place_segments(&layout, owned.clone(), (spec, rules));
    // Then working copies hold another model than masters at times.
    let apart = forms.iter().any(|(form, _)| form.kind == StateKind::BaseIterate);
    let masters = if compute.kind == kind && home == compute.device && !apart {
        let start = if working_numel == whole { owned.start as i64 } else { 0 };
        working.narrow(0, start, own)
    } else {
        zeros(own, kind, home)
    };
    let states = forms.into_iter().map(|(spec, numel)| {
        let numel = spec.storage.num_elements(numel) as i64;
        StateBuffer { spec, flat: zeros(numel, storage_dtype(spec.storage, kind), home) }
    });
    let states = states.collect();
    let summed_numel = if placement.accumulates_whole() { whole } else { own };
    let grads = zeros(summed_numel, kind, compute.device);
    let whole = ownership::whole_unit((spec, &layout), rules, owners, placement, (kind, home));
    let spec = spec.clone();
    Ok(UnitState { spec, layout, owned, working, grads, masters, segments, states, whole })
}

/// The segments of `owned` with their places in state buffers, and for each form of state how many
/// elements of parameters have it.
fn place_segments(
    layout: &UnitLayout,
    owned: Range<usize>,
    (spec, rules): (&UnitSpec, &Rules),
) -> (Vec<OwnedSegment>, Vec<(StateSpec, usize)>) {
    let specs_of = |param: usize| rules.state_specs(&spec.params[param]);
    // Of all parameters, so that every rank has the same buffers, if empty ones.
    let mut forms: Vec<(StateSpec, usize)> = Vec::new();
    for spec in (0..layout.params().len()).flat_map(specs_of) {
        if !forms.iter().any(|(form, _)| form == spec) {
            forms.push((*spec, 0));
        }
    }
    let place = |Segment { param, param_range, unit_range }| {
        let range = unit_range.start - owned.start..unit_range.end - owned.start;
        let mut segment = OwnedSegment { param, param_range, range, places: Vec::new() };
        for spec in specs_of(param) {
            let buffer = forms.iter().position(|(form, _)| form == spec);
            let buffer = buffer.expect("every parameter's forms were listed above");
            segment.places.push((buffer, forms[buffer].1));
            forms[buffer].1 += segment.padded_len();
        }
        segment
    };
    let segments = layout.segments(owned.clone()).map(place).collect();
    (segments, forms)
}

/// Fills the states that do not start at zero.
fn start_states(unit: &UnitState) {
    for segment in &unit.segments {
        for &(buffer, first) in &segment.places {
            let StateBuffer { spec, flat } = &unit.states[buffer];
            if spec.kind.start() == Start::Master {
                let (start, len) = (segment.range.start as i64, segment.range.len() as i64);
                flat.narrow(0, first as i64, len).copy_(&unit.masters.narrow(0, start, len));
            }
        }
    }
}

/// Initial values of a whole unit, parameters computed side by side.
fn initial_values(compute: &Compute, unit: &UnitState, seed: u64) -> Vec<f64> {
    let mut values = vec![0.0; unit.layout.padded_numel()];
    let mut parts = Vec::new();
    let (mut rest, mut position) = (values.as_mut_slice(), 0);
    for (place, param) in unit.layout.params().iter().zip(&unit.spec.params) {
        let (_padding, after) = rest.split_at_mut(place.offset - position);
        let (part, after) = after.split_at_mut(place.numel);
        if place.offset < unit.owned.end && unit.owned.start < place.range().end {
            parts.push((param, part));
        }
        (rest, position) = (after, place.offset + place.numel);
    }
    compute.pool.for_each_chunk_mut(&mut parts, 1, |_, part| {
        let (param, values) = &mut part[0];
        init::fill(seed, param, values);
    });
    values
}
