//! The crossing of gradients and optimizer: the global gradient norm, and one update of all units.
//!
//! Each rank works on what it owns, in pieces that lie within one parameter. Neither the norm's
//! sum nor the update depends on where shards and pieces are cut.

use std::collections::{BTreeMap, VecDeque};

use grove_optim::{
    DecayOrder, Elements, Groups, Kernels, Real, Rule, Scalars, StateSlice, StepNumbers, Storage,
    TensorElements, Working,
};
use half::bf16;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::kernel::view;
use crate::model::compute::Compute;
use crate::model::units::ParamSpec;
use crate::pass::Traffic;
use crate::rules::Rules;
use crate::sharding::Placement;
use crate::state::{StateBuffer, UnitState};

mod norm;
mod whole;

pub use norm::{SquaredNorm, squared_grad_norm};

/// Elements that one thread takes at a time: large beside the cost of handing them out, small
/// beside a parameter. A multiple of the leaf of the norm's sum.
const PIECE_ELEMENTS: usize = 1 << 16;

/// The numbers of one update that all parameters share.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// The rules by role.
    pub rules: &'a Rules,
    /// Their kernels for masters on a GPU; libtorch's operations without them.
    pub kernels: Option<&'a Kernels>,
    /// Multipliers by role.
    pub groups: &'a Groups,
    /// The schedule's learning rate.
    pub lr: f64,
    /// The schedule's factor on weight decay.
    pub weight_decay: f64,
    /// Factor on every gradient element: one over the token count, times the clip scale.
    pub grad_scale: f64,
    /// Number of the update, from 1.
    pub step: u64,
    /// What is added to it for parameters with a count of their own.
    pub count_offsets: &'a BTreeMap<String, i64>,
    /// Weight of this step's iterate in schedule-free's average.
    pub averaging_weight: f64,
    /// The run's seed, for states that are rounded at random.
    pub seed: u64,
}

/// Updates masters and optimizer state of what this rank owns, and working copies everywhere: those
/// of a unit travel while the next units are updated, and the next forward waits for them.
///
/// # Errors
/// If a number of the update would spoil every element of a group (see [`Scalars`]); other groups
/// may have been updated by then.
///
/// # Collectives
/// An all-gather for each unit whose working copies are whole and masters sharded; for parameters
/// that their rule needs whole, those of their gradients to their owners and of updates back.
pub fn apply(
    compute: &Compute,
    units: &mut [UnitState],
    update: &Update<'_>,
    traffic: &mut Traffic<'_>,
) -> Result<(), Error> {
    let Traffic { sharding, residents, exchange_bytes, .. } = &mut *traffic;
    let (mut coming, mut going) = (VecDeque::new(), VecDeque::new());
    for turn in 0..units.len() + whole::GRADIENTS_AHEAD + whole::UPDATES_BEHIND {
        if let Some(unit) = units.get(turn) {
            coming.push_back(whole::send_gradients(unit, sharding, update)?);
        }
        let computed = turn.checked_sub(whole::GRADIENTS_AHEAD);
        if let Some(unit) = computed.and_then(|index| units.get_mut(index)) {
            let gradients = coming.pop_front().expect("they were sent in an earlier turn");
            going.push_back(whole::compute_updates(unit, sharding, update, gradients)?);
        }
        let travels = coming.iter().map(whole::Gradients::bytes).sum::<u64>()
            + going.iter().map(whole::Updates::bytes).sum::<u64>();
        *exchange_bytes = travels.max(*exchange_bytes);
        let index = turn.checked_sub(whole::GRADIENTS_AHEAD + whole::UPDATES_BEHIND);
        let Some(index) = index else { continue };
        let updates = going.pop_front().expect("they were computed in an earlier turn").wait()?;
        let (unit, updates) = (&mut units[index], Updates(updates, &sharding.placement));
        if unit.masters.device() != Device::Cpu {
            update_tensors(unit, update, &updates)?;
        } else if compute.accumulation() == Kind::Double {
            update_slices::<f64>(compute, unit, update, &updates)?;
        } else {
            update_slices::<f32>(compute, unit, update, &updates)?;
        }
        residents.refresh(units, sharding, index)?;
    }
    Ok(())
}

/// The updates of a unit's parameters that are taken whole, and which part of them this rank takes.
struct Updates<'a>(Option<Tensor>, &'a Placement);

/// What becomes of a parameter's gradient.
#[derive(Clone, Copy)]
enum Step<'a> {
    /// The rule takes it an element at a time.
    ElementWise(&'a Rule),
    /// Its owner has made an update of it, which is to be subtracted.
    Subtract(DecayOrder),
}

/// A range of one parameter with the numbers of its group, to be taken by one thread; the outcome
/// takes its place. Where it is to be subtracted, the update stands for the gradient.
enum Piece<'a, T: Real> {
    Todo(Elements<'a, T>, Step<'a>, Scalars),
    Done(Result<(), grove_optim::Error>),
}

/// Updates a unit whose masters are on the host. Gradients and working copies that are on a device
/// come and go.
fn update_slices<T: Real + view::Element>(
    compute: &Compute,
    unit: &mut UnitState,
    update: &Update<'_>,
    Updates(updates, place): &Updates<'_>,
) -> Result<(), grove_optim::Error> {
    let grads = unit.owned_grads().to_device(Device::Cpu);
    let mut device_working = unit.owned_working();
    let is_rounded = device_working.kind() == Kind::BFloat16;
    let mut working = device_working.to_device(Device::Cpu);
    let mut pieces = Vec::new();
    let UnitState { spec, masters, segments, states, whole, .. } = unit;
    let updates = updates.as_ref().map_or(&[][..], view::slice::<T>);
    let (mut master, mut grad) = (view::slice_mut::<T>(masters), view::slice::<T>(&grads));
    let mut copy = match is_rounded {
        true => Some(view::slice_mut::<bf16>(&mut working)),
        false => None,
    };
    let mut states: Vec<StateSlice<'_, T>> = states.iter_mut().map(state_slice).collect();
    for segment in segments.iter() {
        let padded_len = segment.padded_len();
        let mut elements = Elements {
            master: take(&mut master, padded_len),
            grad: grad.split_off(..padded_len).expect("gradients are as long as masters"),
            state: segment
                .places
                .iter()
                .map(|&(buffer, _)| take_state(&mut states[buffer], padded_len))
                .collect(),
            working: match &mut copy {
                Some(copy) => Working::Bf16(take(copy, padded_len)),
                None => Working::None,
            },
            first: segment.param_range.start,
        };
        elements = elements.truncate(segment.range.len());
        if let Some(taken) = whole.get(segment.param) {
            elements.grad = &updates[whole::update_range(taken, whole, place)];
        }
        collect_pieces(elements, update.of(&spec.params[segment.param]), &mut pieces);
    }
    compute.pool.for_each_chunk_mut(&mut pieces, 1, |_, piece| {
        let taken = std::mem::replace(&mut piece[0], Piece::Done(Ok(())));
        if let Piece::Todo(elements, step, scalars) = taken {
            piece[0] = Piece::Done(match step {
                Step::ElementWise(rule) => rule.update(elements, &scalars),
                Step::Subtract(order) => {
                    let Elements { master, grad, working, .. } = elements;
                    order.apply(master, grad, working, &scalars)
                }
            });
        }
    });
    pieces.into_iter().try_for_each(|piece| match piece {
        Piece::Done(outcome) => outcome,
        Piece::Todo(..) => unreachable!("every piece was visited"),
    })?;
    if device_working.device() != Device::Cpu || !(is_rounded || unit.masters_are_working()) {
        device_working.copy_(if is_rounded { &working } else { &unit.masters });
    }
    Ok(())
}

/// Cuts a segment into pieces.
fn collect_pieces<'a, T: Real>(
    mut elements: Elements<'a, T>,
    (step, scalars): (Step<'a>, Scalars),
    pieces: &mut Vec<Piece<'a, T>>,
) {
    while elements.master.len() > PIECE_ELEMENTS {
        let (piece, tail) = elements.split_at(PIECE_ELEMENTS);
        pieces.push(Piece::Todo(piece, step, scalars));
        elements = tail;
    }
    pieces.push(Piece::Todo(elements, step, scalars));
}

fn state_slice<T: Real + view::Element>(buffer: &mut StateBuffer) -> StateSlice<'_, T> {
    let flat = &mut buffer.flat;
    match buffer.spec.storage {
        Storage::Accumulation => StateSlice::Values(view::slice_mut(flat)),
        Storage::Bf16 => StateSlice::Bf16(view::slice_mut(flat)),
        Storage::Codes => StateSlice::Codes(view::slice_mut(flat)),
        Storage::BlockScale => StateSlice::BlockScale(view::slice_mut(flat)),
    }
}

/// Takes the next `len` elements off a slice.
fn take<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    rest.split_off_mut(..len).expect("segments lie within the buffers")
}

/// Takes the states of the next `len` elements off a buffer.
fn take_state<'a, T: Real>(rest: &mut StateSlice<'a, T>, len: usize) -> StateSlice<'a, T> {
    let whole = std::mem::replace(rest, StateSlice::Values(&mut []));
    let (taken, tail) = whole.split_at(len);
    *rest = tail;
    taken
}

fn update_tensors(
    unit: &UnitState,
    update: &Update<'_>,
    Updates(updates, place): &Updates<'_>,
) -> Result<(), grove_optim::Error> {
    let (grads, mut working) = (unit.owned_grads(), unit.owned_working());
    for segment in &unit.segments {
        let len = segment.range.len();
        let part = |flat: &Tensor| flat.narrow(0, segment.range.start as i64, len as i64);
        let (mut master, grad, mut rounded) = (part(&unit.masters), part(&grads), part(&working));
        let state_of = |&(buffer, first): &(usize, usize)| {
            let StateBuffer { spec, flat } = &unit.states[buffer];
            let (start, len) = (spec.storage.num_elements(first), spec.storage.num_elements(len));
            flat.narrow(0, start as i64, len as i64)
        };
        let mut state: Vec<_> = segment.places.iter().map(state_of).collect();
        let copies = working.kind() != unit.masters.kind();
        let (step, scalars) = update.of(&unit.spec.params[segment.param]);
        let rule = match (step, updates, unit.whole.get(segment.param)) {
            (Step::ElementWise(rule), ..) => rule,
            (Step::Subtract(order), Some(updates), Some(taken)) => {
                let range = whole::update_range(taken, &unit.whole, place);
                let change = updates.narrow(0, range.start as i64, range.len() as i64);
                let copy = copies.then_some(&mut rounded);
                order.apply_tensor(&mut master, &change, copy, &scalars)?;
                continue;
            }
            _ => unreachable!("what is taken whole has an update"),
        };
        let elements = TensorElements {
            master: &mut master,
            grad: &grad,
            state: state.iter_mut().collect(),
            working: copies.then_some(&mut rounded),
            first: segment.param_range.start,
        };
        match update.kernels {
            Some(kernels) => kernels.update(rule, elements, &scalars)?,
            None => rule.update_tensor(elements, &scalars)?,
        }
    }
    if working.kind() == unit.masters.kind() && !unit.masters_are_working() {
        working.copy_(&unit.masters);
    }
    Ok(())
}

impl<'a> Update<'a> {
    /// Number of the update for a parameter, from 1.
    fn step_of(&self, param: &ParamSpec) -> u64 {
        let offset = self.count_offsets.get(&param.name).copied().unwrap_or(0);
        self.step.saturating_add_signed(offset)
    }

    /// What becomes of a parameter's gradient, and its numbers.
    fn of(&self, param: &ParamSpec) -> (Step<'a>, Scalars) {
        if let Some((rule, _)) = self.rules.taken_whole(param) {
            return (Step::Subtract(rule.decay_order()), self.whole_scalars(rule, param));
        }
        let key = Sha256::digest(format!("{}/{}", self.seed, param.name));
        let step = StepNumbers {
            lr: self.lr * self.rules.rest_lr_ratio(),
            grad_scale: self.grad_scale,
            step: self.step_of(param),
            averaging_weight: self.averaging_weight,
            rounding_seed: u64::from_le_bytes(std::array::from_fn(|i| key[i])),
        };
        let rule = self.rules.of(param.role);
        let mut scalars = rule.scalars(self.groups.of(param.role), &step);
        scalars.weight_decay *= self.weight_decay;
        (Step::ElementWise(rule), scalars)
    }
}
