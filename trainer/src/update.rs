//! The crossing of gradients and optimizer: the global gradient norm, and one update of all units.
//!
//! Each rank works on what it owns, in pieces that lie within one parameter. Neither the norm's
//! sum nor the update depends on where shards and pieces are cut.

use grove_optim::{
    Elements, Groups, LEAF_ELEMENTS, Real, Rule, Scalars, TensorElements, Working,
    block_squared_norms, num_blocks,
};
use grove_parallel::ExactSum;
use grove_parallel::layout::Segment;
use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::kernel::view;
use crate::model::compute::Compute;
use crate::pass::Traffic;
use crate::sharding::Sharding;
use crate::state::UnitState;
use crate::step_numbers::sum_integers;

/// Elements that one thread takes at a time: large beside the cost of handing them out, small
/// beside a parameter. A multiple of the leaf of the norm's sum.
const PIECE_ELEMENTS: usize = 1 << 16;

/// The numbers of one update that all parameters share.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// Multipliers by role.
    pub groups: &'a Groups,
    /// The schedule's learning rate.
    pub lr: f64,
    /// Factor on every gradient element: one over the token count, times the clip scale.
    pub grad_scale: f64,
    /// Number of the update, from 1.
    pub step: u64,
}

/// The sum of squares of all gradient elements, the same on every rank and at every sharding:
/// leaves of 256 elements of a parameter are summed in one order, and the leaves' sums exactly.
///
/// # Errors
/// If the collective fails.
///
/// # Collectives
/// One all-reduce over the shard group, where there is more than one rank in it.
pub fn squared_grad_norm(
    compute: &Compute,
    units: &[UnitState],
    sharding: &Sharding<'_>,
) -> Result<f64, grove_parallel::Error> {
    let mut sum = match (compute.device, compute.accumulation()) {
        (Device::Cpu, Kind::Double) => squared_norm_of::<f64>(compute, units),
        (Device::Cpu, _) => squared_norm_of::<f32>(compute, units),
        _ => squared_norm_of_tensors(units),
    };
    if sharding.placement.shard_degree > 1 {
        let digits = sum_integers(sharding.shards(), &sum.to_digits(), "squared norm")?;
        sum = ExactSum::from_digits(&digits);
    }
    Ok(sum.value())
}

/// Segments of the owned parts of parameters, from the first owned element.
fn owned_segments(unit: &UnitState) -> impl Iterator<Item = Segment> + '_ {
    let start = unit.owned.start;
    unit.layout.segments(unit.owned.clone()).map(move |segment| Segment {
        unit_range: segment.unit_range.start - start..segment.unit_range.end - start,
        ..segment
    })
}

fn squared_norm_of<T: Real + view::Element>(compute: &Compute, units: &[UnitState]) -> ExactSum {
    let grads: Vec<Tensor> = units.iter().map(UnitState::owned_grads).collect();
    let mut pieces = Vec::new();
    for (unit, grads) in units.iter().zip(&grads) {
        let grads = view::slice::<T>(grads);
        for segment in owned_segments(unit) {
            let values = &grads[segment.unit_range];
            pieces.extend(values.chunks(PIECE_ELEMENTS).map(|piece| (piece, ExactSum::new())));
        }
    }
    compute.pool.for_each_chunk_mut(&mut pieces, 1, |_, piece| {
        let (values, sum) = &mut piece[0];
        let mut leaves = [0.0; PIECE_ELEMENTS / LEAF_ELEMENTS];
        let leaves = &mut leaves[..num_blocks(values.len(), LEAF_ELEMENTS)];
        block_squared_norms(values, LEAF_ELEMENTS, leaves).expect("a sum for each leaf");
        leaves.iter().for_each(|&leaf| sum.add(leaf));
    });
    let mut total = ExactSum::new();
    pieces.iter().for_each(|(_, sum)| total.merge(sum));
    total
}

/// The same by libtorch's operators, which sum a leaf in an order of their own.
fn squared_norm_of_tensors(units: &[UnitState]) -> ExactSum {
    const LEAF: i64 = LEAF_ELEMENTS as i64;
    let mut leaves = Vec::new();
    for unit in units {
        let grads = unit.owned_grads();
        for segment in owned_segments(unit) {
            let (start, numel) = (segment.unit_range.start as i64, segment.unit_range.len() as i64);
            let whole = numel / LEAF * LEAF;
            for (start, numel) in [(start, whole), (start + whole, numel - whole)] {
                if numel > 0 {
                    let rows = grads.narrow(0, start, numel).view([-1, numel.min(LEAF)]);
                    let squares = rows.to_kind(Kind::Double).square();
                    leaves.push(squares.sum_dim_intlist([1i64].as_slice(), false, Kind::Double));
                }
            }
        }
    }
    let leaves: Vec<f64> = Vec::try_from(Tensor::cat(&leaves, 0)).expect("a vector of f64");
    let mut sum = ExactSum::new();
    leaves.into_iter().for_each(|leaf| sum.add(leaf));
    sum
}

/// Updates masters and optimizer state of what this rank owns, and working copies everywhere: those
/// of a unit travel while the next units are updated, and the next forward waits for them.
///
/// # Errors
/// If a number of the update would spoil every element of a group (see [`Scalars`]); other groups
/// may have been updated by then.
///
/// # Collectives
/// An all-gather for each unit whose working copies are whole and masters sharded.
pub fn apply(
    compute: &Compute,
    units: &mut [UnitState],
    update: &Update<'_>,
    traffic: &mut Traffic<'_>,
) -> Result<(), Error> {
    for index in 0..units.len() {
        let unit = &mut units[index];
        if unit.masters.device() != Device::Cpu {
            update_tensors(unit, update)?;
        } else if compute.accumulation() == Kind::Double {
            update_slices::<f64>(compute, unit, update)?;
        } else {
            update_slices::<f32>(compute, unit, update)?;
        }
        let Traffic { sharding, residents, .. } = &mut *traffic;
        residents.refresh(units, sharding, index)?;
    }
    Ok(())
}

/// A range of one parameter with the numbers of its group, to be taken by one thread; the outcome
/// takes its place.
enum Piece<'a, T: Real> {
    Todo(Elements<'a, T>, Scalars),
    Done(Result<(), grove_optim::Error>),
}

/// Updates a unit whose masters are on the host. Gradients and working copies that are on a device
/// come and go.
fn update_slices<T: Real + view::Element>(
    compute: &Compute,
    unit: &mut UnitState,
    update: &Update<'_>,
) -> Result<(), grove_optim::Error> {
    let grads = unit.owned_grads().to_device(Device::Cpu);
    let mut device_working = unit.owned_working();
    let is_rounded = device_working.kind() == Kind::BFloat16;
    let mut working = device_working.to_device(Device::Cpu);
    let mut pieces = Vec::new();
    let segments: Vec<Segment> = owned_segments(unit).collect();
    let UnitState { spec, masters, moments, .. } = unit;
    let mut rest = Elements {
        master: view::slice_mut::<T>(masters),
        grad: view::slice::<T>(&grads),
        state: moments.iter_mut().map(|(_, moment)| view::slice_mut::<T>(moment)).collect(),
        working: match is_rounded {
            true => Working::Bf16(view::slice_mut::<bf16>(&mut working)),
            false => Working::None,
        },
    };
    let mut position = 0;
    for segment in segments {
        let (_padding, after) = rest.split_at(segment.unit_range.start - position);
        let (mut elements, after) = after.split_at(segment.unit_range.len());
        (rest, position) = (after, segment.unit_range.end);
        let scalars = update.scalars(spec.params[segment.param].role);
        while elements.master.len() > PIECE_ELEMENTS {
            let (piece, tail) = elements.split_at(PIECE_ELEMENTS);
            pieces.push(Piece::Todo(piece, scalars));
            elements = tail;
        }
        pieces.push(Piece::Todo(elements, scalars));
    }
    compute.pool.for_each_chunk_mut(&mut pieces, 1, |_, piece| {
        let taken = std::mem::replace(&mut piece[0], Piece::Done(Ok(())));
        if let Piece::Todo(elements, scalars) = taken {
            piece[0] = Piece::Done(update.rule.update(elements, &scalars));
        }
    });
    pieces.into_iter().try_for_each(|piece| match piece {
        Piece::Done(outcome) => outcome,
        Piece::Todo(..) => unreachable!("every piece was visited"),
    })?;
    if device_working.device() != Device::Cpu {
        device_working.copy_(if is_rounded { &working } else { masters });
    }
    Ok(())
}

fn update_tensors(unit: &UnitState, update: &Update<'_>) -> Result<(), grove_optim::Error> {
    let (grads, working) = (unit.owned_grads(), unit.owned_working());
    for segment in owned_segments(unit) {
        let (start, numel) = (segment.unit_range.start as i64, segment.unit_range.len() as i64);
        let part = |flat: &Tensor| flat.narrow(0, start, numel);
        let (mut master, grad, mut rounded) = (part(&unit.masters), part(&grads), part(&working));
        let mut state: Vec<_> = unit.moments.iter().map(|(_, moment)| part(moment)).collect();
        let elements = TensorElements {
            master: &mut master,
            grad: &grad,
            state: state.iter_mut().collect(),
            working: (working.kind() != unit.masters.kind()).then_some(&mut rounded),
        };
        let role = unit.spec.params[segment.param].role;
        update.rule.update_tensor(elements, &update.scalars(role))?;
    }
    Ok(())
}

impl Update<'_> {
    fn scalars(&self, role: grove_optim::Role) -> Scalars {
        self.rule.scalars(self.groups.of(role), self.lr, self.grad_scale, self.step)
    }
}
