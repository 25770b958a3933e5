//! The global gradient norm: leaves of 256 elements of a parameter are summed in one order, and the
//! leaves' sums exactly, so that it is the same on every rank and at every sharding.

use grove_optim::{LEAF_ELEMENTS, Real, block_squared_norms, num_blocks};
use grove_parallel::ExactSum;
use tch::{Device, Kind, Tensor};

use super::PIECE_ELEMENTS;
use crate::clock::Clock;
use crate::kernel::view;
use crate::model::compute::Compute;
use crate::readback::{Arrived, Place, Readback};
use crate::sharding::Sharding;
use crate::state::UnitState;
use crate::step_numbers::sum_integers;

/// This rank's part of the sum of squares of all gradient elements.
#[derive(Debug)]
pub struct SquaredNorm(Part);

#[derive(Debug)]
enum Part {
    /// Summed.
    Here(Box<ExactSum>),
    /// The leaves' sums will come from the device.
    Asked(Place),
}

impl SquaredNorm {
    /// Begins with what this rank owns: on the CPU the sum itself, on a device its leaves, queued
    /// and asked for.
    pub fn begin(compute: &Compute, units: &[UnitState], readback: &mut Readback) -> Self {
        Self(match (compute.device, compute.accumulation()) {
            (Device::Cpu, Kind::Double) => Part::Here(squared_norm_of::<f64>(compute, units)),
            (Device::Cpu, _) => Part::Here(squared_norm_of::<f32>(compute, units)),
            _ => Part::Asked(ask_leaves(units, readback)),
        })
    }

    /// The sum over all ranks, on each of them, once what was asked for has arrived.
    ///
    /// # Errors
    /// If the collective fails.
    ///
    /// # Collectives
    /// One all-reduce over the shard group, where there is more than one rank in it.
    pub fn finish(
        self,
        arrived: &Arrived,
        sharding: &Sharding<'_>,
    ) -> Result<f64, grove_parallel::Error> {
        let sum = match self.0 {
            Part::Here(sum) => *sum,
            Part::Asked(place) => {
                let mut sum = ExactSum::new();
                arrived.at(&place).iter().for_each(|&leaf| sum.add(leaf));
                sum
            }
        };
        if sharding.placement.shard_degree == 1 {
            return Ok(sum.value());
        }
        let digits = sum_integers(sharding.shards(), &sum.to_digits(), "squared norm")?;
        Ok(ExactSum::from_digits(&digits).value())
    }
}

/// The sum of squares of all gradient elements, the same on every rank and at every sharding. Where
/// gradients are on a device, waits for it.
///
/// # Errors
/// If the collective fails.
///
/// # Collectives
/// That of [`SquaredNorm::finish`].
pub fn squared_grad_norm(
    compute: &Compute,
    units: &[UnitState],
    sharding: &Sharding<'_>,
    clock: &mut Clock,
) -> Result<f64, grove_parallel::Error> {
    let mut readback = Readback::new();
    let norm = SquaredNorm::begin(compute, units, &mut readback);
    norm.finish(&readback.fetch(clock), sharding)
}

fn squared_norm_of<T: Real + view::Element>(
    compute: &Compute,
    units: &[UnitState],
) -> Box<ExactSum> {
    let grads: Vec<Tensor> = units.iter().map(UnitState::owned_grads).collect();
    let mut pieces = Vec::new();
    for (unit, grads) in units.iter().zip(&grads) {
        let grads = view::slice::<T>(grads);
        for segment in &unit.segments {
            let values = &grads[segment.range.clone()];
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
    let mut total = Box::new(ExactSum::new());
    pieces.iter().for_each(|(_, sum)| total.merge(sum));
    total
}

/// Asks for the leaves' sums by libtorch's operators, which sum a leaf in an order of their own.
fn ask_leaves(units: &[UnitState], readback: &mut Readback) -> Place {
    const LEAF: i64 = LEAF_ELEMENTS as i64;
    let mut leaves = Vec::new();
    for unit in units {
        let grads = unit.owned_grads();
        for segment in &unit.segments {
            let (start, numel) = (segment.range.start as i64, segment.range.len() as i64);
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
    match leaves.is_empty() {
        true => readback.ask_scalars(&[]),
        false => readback.ask(&Tensor::cat(&leaves, 0)),
    }
}

#[cfg(test)]
mod tests;
