//! Everything a run is between two steps: this rank's part of the units' buffers, and the counters.

use std::ops::Range;

use grove_optim::{Rule, StateKind};
use grove_parallel::UnitLayout;
use grove_parallel::layout::ParamShape;
use tch::{Device, Tensor};

use crate::model::compute::Compute;
use crate::model::init;
use crate::model::units::{ParamSpec, UnitSpec};
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
    /// The optimizer's state for `owned`, one buffer for each of the rule's kinds, accumulation
    /// dtype.
    pub moments: Vec<(StateKind, Tensor)>,
}

impl UnitState {
    /// Whether the working copies of the whole unit are here.
    pub fn holds_whole_working(&self) -> bool {
        self.working.numel() == self.layout.padded_numel()
    }

    /// The working copies of `owned`.
    pub fn owned_working(&self) -> Tensor {
        self.owned_part(&self.working)
    }

    /// The gradient sums of `owned`.
    pub fn owned_grads(&self) -> Tensor {
        self.owned_part(&self.grads)
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
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens trained on, all ranks together.
    pub num_tokens: u64,
    /// Floating-point operations spent, all ranks together.
    pub flops: u128,
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
        rule: &Rule,
        (placement, home): (&Placement, Device),
    ) -> Result<Self, grove_parallel::Error> {
        let units = units.iter().map(|spec| allocate_unit(compute, spec, rule, (placement, home)));
        Ok(Self { units: units.collect::<Result<_, _>>()?, step: 0, num_tokens: 0, flops: 0 })
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
        Ok(Self { units: units.collect::<Result<_, _>>()?, step: 0, num_tokens: 0, flops: 0 })
    }

    /// Fills the masters with initial values drawn by (seed, parameter name), and this rank's part
    /// of the working copies from them.
    pub fn initialize(&mut self, compute: &Compute, seed: u64) {
        for unit in &mut self.units {
            let values = initial_values(compute, unit, seed);
            unit.masters.copy_(&Tensor::from_slice(&values[unit.owned.clone()]));
        }
        self.round_masters();
    }

    /// Rounds the masters to this rank's part of the working copies, as an update does.
    pub fn round_masters(&mut self) {
        for unit in &self.units {
            unit.owned_working().copy_(&unit.masters);
        }
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
        moments: Vec::new(),
        spec: spec.clone(),
        layout,
    })
}

fn allocate_unit(
    compute: &Compute,
    spec: &UnitSpec,
    rule: &Rule,
    (placement, home): (&Placement, Device),
) -> Result<UnitState, grove_parallel::Error> {
    let layout = layout_of(spec, placement.degree)?;
    let owned = placement.owned(&layout);
    let (whole, own) = (layout.padded_numel() as i64, owned.len() as i64);
    let zeros = |numel: i64, kind, device| Tensor::zeros([numel], (kind, device));
    let kind = compute.accumulation();
    let working_numel = if placement.shards_working(&layout) { own } else { whole };
    let working = zeros(working_numel, compute.kind, compute.device);
    let masters = if compute.kind == kind && home == compute.device {
        let start = if working_numel == whole { owned.start as i64 } else { 0 };
        working.narrow(0, start, own)
    } else {
        zeros(own, kind, home)
    };
    let moments = rule.state_kinds().iter().map(|&state| (state, zeros(own, kind, home))).collect();
    let summed_numel = if placement.accumulates_whole() { whole } else { own };
    let grads = zeros(summed_numel, kind, compute.device);
    Ok(UnitState { spec: spec.clone(), layout, owned, working, grads, masters, moments })
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
