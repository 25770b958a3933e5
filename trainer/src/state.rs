//! Everything a run is between two steps: the units' buffers and the counters.

use grove_optim::{Rule, StateKind};
use grove_parallel::UnitLayout;
use grove_parallel::layout::ParamShape;
use tch::Tensor;

use crate::model::compute::Compute;
use crate::model::init;
use crate::model::units::{ParamSpec, UnitSpec};
use crate::model::views::{Accumulate, Grads, Weights};

/// The flat buffers of one unit. Each has `layout.padded_numel()` elements; padding stays zero.
#[derive(Debug)]
pub struct UnitState {
    /// What the unit's parameters are.
    pub spec: UnitSpec,
    /// Where they lie in each buffer.
    pub layout: UnitLayout,
    /// Working copies, compute dtype. When that is the masters' dtype, the masters themselves.
    pub working: Tensor,
    /// Gradient accumulators, accumulation dtype.
    pub grads: Tensor,
    /// Master weights, accumulation dtype: what the optimizer updates.
    pub masters: Tensor,
    /// The optimizer's state, one buffer for each of the rule's kinds, accumulation dtype.
    pub moments: Vec<(StateKind, Tensor)>,
}

impl UnitState {
    /// The working copies, for layers to read.
    pub fn weights(&self) -> Weights<'_> {
        Weights { layout: &self.layout, flat: &self.working }
    }

    /// The gradient accumulators, for layers to add to.
    pub fn grads(&self, accumulate: Accumulate) -> Grads<'_> {
        Grads { layout: &self.layout, flat: &self.grads, accumulate }
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
    ///
    /// # Errors
    /// If the units' parameters do not make a layout (a duplicate name).
    pub fn allocate(
        compute: &Compute,
        units: &[UnitSpec],
        rule: &Rule,
    ) -> Result<Self, grove_parallel::Error> {
        let units = units.iter().map(|spec| allocate_unit(compute, spec, rule));
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

    /// Fills the masters with initial values drawn by (seed, parameter name), and the working
    /// copies from them.
    pub fn initialize(&mut self, compute: &Compute, seed: u64) {
        for unit in &mut self.units {
            let values = initial_values(compute, unit, seed);
            unit.masters.copy_(&Tensor::from_slice(&values));
        }
        self.refresh_working();
    }

    /// Rounds the masters to the working copies, as after an update.
    pub fn refresh_working(&mut self) {
        for unit in &mut self.units {
            unit.working.copy_(&unit.masters);
        }
    }

    /// Every parameter with its unit, in execution order.
    pub fn params(&self) -> impl Iterator<Item = (&UnitState, usize, &ParamSpec)> {
        self.units
            .iter()
            .flat_map(|unit| unit.spec.params.iter().enumerate().map(move |(i, p)| (unit, i, p)))
    }
}

fn layout_of(spec: &UnitSpec) -> Result<UnitLayout, grove_parallel::Error> {
    let shapes: Vec<_> = spec
        .params
        .iter()
        .map(|param| ParamShape { name: param.name.clone(), shape: param.shape.clone() })
        .collect();
    UnitLayout::new(&spec.name, &shapes, 1)
}

fn allocate_working_unit(
    compute: &Compute,
    spec: &UnitSpec,
) -> Result<UnitState, grove_parallel::Error> {
    let layout = layout_of(spec)?;
    let zeros = |numel, kind| Tensor::zeros([numel], (kind, compute.device));
    Ok(UnitState {
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
) -> Result<UnitState, grove_parallel::Error> {
    let layout = layout_of(spec)?;
    let shape = [layout.padded_numel() as i64];
    let zeros = |kind| Tensor::zeros(shape, (kind, compute.device));
    let masters = zeros(compute.accumulation());
    let working = if compute.kind == compute.accumulation() {
        masters.shallow_clone()
    } else {
        zeros(compute.kind)
    };
    let moments =
        rule.state_kinds().iter().map(|&kind| (kind, zeros(compute.accumulation()))).collect();
    let grads = zeros(compute.accumulation());
    Ok(UnitState { spec: spec.clone(), layout, working, grads, masters, moments })
}

/// Initial values of a whole unit, parameters computed side by side.
fn initial_values(compute: &Compute, unit: &UnitState, seed: u64) -> Vec<f64> {
    let mut values = vec![0.0; unit.layout.padded_numel()];
    let mut parts = Vec::new();
    let (mut rest, mut position) = (values.as_mut_slice(), 0);
    for (place, param) in unit.layout.params().iter().zip(&unit.spec.params) {
        let (_padding, after) = rest.split_at_mut(place.offset - position);
        let (part, after) = after.split_at_mut(place.numel);
        parts.push((param, part));
        (rest, position) = (after, place.offset + place.numel);
    }
    compute.pool.for_each_chunk_mut(&mut parts, 1, |_, part| {
        let (param, values) = &mut part[0];
        init::fill(seed, param, values);
    });
    values
}
