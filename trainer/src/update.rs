//! The crossing of gradients and optimizer: the global gradient norm, and one update of all units.
//!
//! Work is cut into pieces of fixed size within each parameter, so that neither the norm's sum nor
//! the update depends on the number of threads.

use grove_optim::{
    Elements, Groups, Real, Rule, Scalars, TensorElements, Working, block_squared_norms,
    num_blocks, squared_norm_tensor, tree_sum,
};
use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::kernel::view;
use crate::model::compute::Compute;
use crate::state::UnitState;

/// Elements that one thread takes at a time: large beside the cost of handing them out, small
/// beside a parameter.
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

/// The sum of squares of all gradient elements, as a canonical tree of sums within each parameter
/// and in order over parameters (on the CPU; on a GPU in libtorch's order).
///
/// # Errors
/// If libtorch refuses an operation.
pub fn squared_grad_norm(
    compute: &Compute,
    units: &[UnitState],
) -> Result<f64, grove_optim::Error> {
    if compute.device != Device::Cpu {
        let mut sum = Tensor::zeros([], (Kind::Double, compute.device));
        for unit in units {
            sum += squared_norm_tensor(&unit.grads)?;
        }
        return Ok(sum.double_value(&[]));
    }
    match compute.accumulation() {
        Kind::Double => Ok(squared_norm_of::<f64>(compute, units)),
        _ => Ok(squared_norm_of::<f32>(compute, units)),
    }
}

fn squared_norm_of<T: Real + view::Element>(compute: &Compute, units: &[UnitState]) -> f64 {
    let mut params = Vec::new();
    for unit in units {
        let grads = view::slice::<T>(&unit.grads);
        params.extend(unit.layout.params().iter().map(|place| &grads[place.range()]));
    }
    let blocks = |values: &[T]| vec![0.0; num_blocks(values.len(), PIECE_ELEMENTS)];
    let mut sums: Vec<_> = params.iter().map(|values| blocks(values)).collect();
    let mut pieces: Vec<_> = params
        .iter()
        .zip(&mut sums)
        .flat_map(|(values, sums)| values.chunks(PIECE_ELEMENTS).zip(sums.chunks_mut(1)))
        .collect();
    compute.pool.for_each_chunk_mut(&mut pieces, 1, |_, piece| {
        let (values, sum) = &mut piece[0];
        block_squared_norms(values, PIECE_ELEMENTS, sum)
            .expect("the piece is one block and has one sum");
    });
    let sums: Vec<f64> = sums.iter().map(|sums| tree_sum(sums)).collect();
    tree_sum(&sums)
}

/// Updates masters, optimizer state and working copies from the gradients.
///
/// # Errors
/// If a number of the update would spoil every element of a group (see [`Scalars`]); other groups
/// may have been updated by then.
pub fn apply(
    compute: &Compute,
    units: &mut [UnitState],
    update: &Update<'_>,
) -> Result<(), grove_optim::Error> {
    if compute.device != Device::Cpu {
        return apply_tensors(units, update);
    }
    match compute.accumulation() {
        Kind::Double => apply_slices::<f64>(compute, units, update),
        _ => apply_slices::<f32>(compute, units, update),
    }
}

/// A range of one parameter with the numbers of its group, to be taken by one thread; the outcome
/// takes its place.
enum Piece<'a, T: Real> {
    Todo(Elements<'a, T>, Scalars),
    Done(Result<(), grove_optim::Error>),
}

fn apply_slices<T: Real + view::Element>(
    compute: &Compute,
    units: &mut [UnitState],
    update: &Update<'_>,
) -> Result<(), grove_optim::Error> {
    let mut pieces = Vec::new();
    for unit in units {
        collect_pieces::<T>(unit, update, &mut pieces);
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
    })
}

/// Cuts a unit's buffers into pieces that lie within one parameter.
fn collect_pieces<'a, T: Real + view::Element>(
    unit: &'a mut UnitState,
    update: &Update<'_>,
    pieces: &mut Vec<Piece<'a, T>>,
) {
    let UnitState { spec, layout, working, grads, masters, moments } = unit;
    let working = match working.kind() {
        Kind::BFloat16 => Working::Bf16(view::slice_mut::<bf16>(working)),
        _ => Working::None,
    };
    let mut rest = Elements {
        master: view::slice_mut::<T>(masters),
        grad: view::slice::<T>(grads),
        state: moments.iter_mut().map(|(_, moment)| view::slice_mut::<T>(moment)).collect(),
        working,
    };
    let mut position = 0;
    for (place, param) in layout.params().iter().zip(&spec.params) {
        let (_padding, after) = rest.split_at(place.offset - position);
        let (mut elements, after) = after.split_at(place.numel);
        (rest, position) = (after, place.offset + place.numel);
        let scalars = update.scalars(param.role);
        while elements.master.len() > PIECE_ELEMENTS {
            let (piece, tail) = elements.split_at(PIECE_ELEMENTS);
            pieces.push(Piece::Todo(piece, scalars));
            elements = tail;
        }
        pieces.push(Piece::Todo(elements, scalars));
    }
}

fn apply_tensors(units: &mut [UnitState], update: &Update<'_>) -> Result<(), grove_optim::Error> {
    for unit in units {
        for (place, param) in unit.layout.params().iter().zip(&unit.spec.params) {
            let part = |flat: &Tensor| flat.narrow(0, place.offset as i64, place.numel as i64);
            let (mut master, grad) = (part(&unit.masters), part(&unit.grads));
            let mut state: Vec<_> = unit.moments.iter().map(|(_, moment)| part(moment)).collect();
            let mut working = part(&unit.working);
            let rounded = unit.working.kind() != unit.masters.kind();
            let elements = TensorElements {
                master: &mut master,
                grad: &grad,
                state: state.iter_mut().collect(),
                working: rounded.then_some(&mut working),
            };
            update.rule.update_tensor(elements, &update.scalars(param.role))?;
        }
    }
    Ok(())
}

impl Update<'_> {
    fn scalars(&self, role: grove_optim::Role) -> Scalars {
        self.rule.scalars(self.groups.of(role), self.lr, self.grad_scale, self.step)
    }
}
